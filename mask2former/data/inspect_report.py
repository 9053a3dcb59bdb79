"""Format the result of `check_dataset` as text and as a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from ..errors import first_few
from ..structures.colors import Color, color_of, shade_of
from ..structures.masks import segmentation_to_patch
from ..utils.tables import side_by_side
from ..visualization import Region, add_caption, draw_regions, regions_from_map
from .image_io import read_image, read_label_map, read_panoptic_png
from .inspect import DatasetReport, presence

_SHOWN_FILES = 20
_SHOWN_NOTES = 5
_TILE = 480  # width of an image on the sheet in pixels
_GAP = 8


def format_report(report: DatasetReport) -> str:
    """Return the report as text for a terminal: counts, sizes, classes, notes and problems."""
    checked = len(report.records)
    part = f"{checked} of {report.total} records" if checked < report.total else f"{checked} records"
    lines = [f"{report.name}: {report.rules.dataset_type} dataset, {len(report.rules.names)} classes, {part}"]
    lines += _size_lines([inspection.size for inspection in report.inspections if inspection.size is not None])
    if report.rules.dataset_type != "unlabeled":
        lines += _class_lines(report)
    lines += _listed("notes", report.notes, _SHOWN_NOTES)
    broken = sum(bool(inspection.problems) for inspection in report.inspections)
    lines += _listed(f"problems ({broken} records cannot be used)", report.problems, _SHOWN_FILES)
    if not report.problems:
        lines.append("No missing or broken files.")
    if report.finding.warning:
        lines.append(f"Warning: {report.finding.warning}")
    if report.finding.error:
        lines.append(f"Nothing to train on: {report.finding.error}")
    return "\n".join(lines)


def _listed(title: str, entries: Sequence[str], count: int) -> list[str]:
    if not entries:
        return []
    more = [f"  and {len(entries) - count} more"] if len(entries) > count else []
    return [f"{len(entries)} {title}:", *(f"  {entry}" for entry in entries[:count]), *more]


def _size_lines(sizes: Sequence[tuple[int, int]]) -> list[str]:
    if not sizes:
        return []
    heights, widths = np.array(sizes).T
    common = ", ".join(f"{w}x{h} ({count})" for (h, w), count in Counter(sizes).most_common(3))
    return [
        f"width {widths.min()} to {widths.max()} (median {np.median(widths):.0f}), "
        f"height {heights.min()} to {heights.max()} (median {np.median(heights):.0f}) pixels; "
        f"most frequent: {common}"
    ]


def _class_lines(report: DatasetReport) -> list[str]:
    pixels: Counter[int] = Counter()
    objects: Counter[int] = Counter()
    for inspection in report.inspections:
        pixels.update(inspection.pixels)
        objects.update(inspection.objects)
    records = presence(report.inspections)
    counted = sum(pixels.values())
    semantic = report.rules.dataset_type == "semantic"
    headers = ["class", "records", *([] if semantic else ["objects"]), "% of pixels"]
    rows = []
    for label, name in enumerate(report.rules.names):
        share = f"{100 * pixels[label] / max(counted, 1):.3f}" if records[label] else "absent"
        rows.append([name.strip()[:28], records[label], *([] if semantic else [objects[label]]), share])
    lines = [side_by_side(headers, rows, width=3 * len(headers) if len(rows) > 30 else len(headers))]
    absent = [name.strip() for label, name in enumerate(report.rules.names) if not records[label]]
    if absent:
        lines.append(f"{len(absent)} of {len(report.rules.names)} classes do not occur: {first_few(absent, 20)}")
    empty = sum(not inspection.pixels and not inspection.problems for inspection in report.inspections)
    crowds, void = (sum(getattr(inspection, key) for inspection in report.inspections) for key in ("crowds", "void"))
    area = sum(
        inspection.size[0] * inspection.size[1] for inspection in report.inspections if inspection.size is not None
    )
    lines.append(
        f"{sum(objects.values())} objects or segments, {crowds} crowd regions, {empty} records without any class"
        if not semantic
        else f"{empty} records without any class"
    )
    if report.rules.dataset_type != "instance":
        lines.append(f"{100 * void / max(area, 1):.2f} % of the pixels have no class")
    return lines


def contact_sheet(report: DatasetReport, count: int = 12) -> Image.Image:
    """Draw annotated images side by side, selected to show as many classes as possible.

    Raises:
        ValueError: no record can be drawn.
    """
    selected = select_records(
        [frozenset(inspection.pixels) for inspection in report.inspections], _usable(report), count
    )
    if not selected:
        raise ValueError(
            f"dataset {report.name!r}: every record has problems, so there is nothing to draw; see the report"
        )
    tiles = [_tile(report, report.records[index]) for index in selected]
    columns = min(len(tiles), max(1, round(len(tiles) ** 0.5 * 1.2)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = columns * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(max(tile.height for tile in row) + _GAP for row in rows) + _GAP), (18, 20, 24))
    top = _GAP
    for row in rows:
        for position, tile in enumerate(row):
            sheet.paste(tile, (_GAP + position * (_TILE + _GAP), top))
        top += max(tile.height for tile in row) + _GAP
    return sheet


def _usable(report: DatasetReport) -> list[int]:
    return [index for index, inspection in enumerate(report.inspections) if not inspection.problems]


def select_records(classes: Sequence[frozenset[int]], usable: Sequence[int], count: int) -> list[int]:
    """Return up to `count` indices: records that add most classes not yet shown, then evenly spread ones.

    Args:
        classes: class indices of each record.
        usable: indices of records to select from.
        count: largest number of records.

    Returns:
        Indices in ascending order.
    """
    selected: list[int] = []
    shown: set[int] = set()
    while len(selected) < count:
        best = max(usable, key=lambda index: len(classes[index] - shown), default=None)
        if best is None or not classes[best] - shown:
            break
        selected.append(best)
        shown |= classes[best]
    rest = sorted(set(usable) - set(selected))
    missing = min(count - len(selected), len(rest))
    selected += [rest[(2 * position + 1) * len(rest) // (2 * missing)] for position in range(missing)]
    return sorted(selected)


def _tile(report: DatasetReport, record: dict[str, Any]) -> Image.Image:
    image = read_image(record["file_name"])
    colors = _class_colors(report)
    if report.rules.dataset_type == "panoptic":
        regions = _segment_regions(report, record, colors)
    elif report.rules.dataset_type == "instance":
        regions = _annotation_regions(report, record, image.shape[:2], colors)
    elif report.rules.dataset_type == "semantic":
        names = dict(enumerate(report.rules.names))
        painted = {label: colors[label] for label in names if label != report.rules.ignore_label}
        regions = regions_from_map(read_label_map(record["sem_seg_file_name"]), painted, names)
    else:
        regions = []
    drawn = draw_regions(image, regions, scale=_TILE / image.shape[1], alpha=0.5)
    return add_caption(drawn, str(record["file_name"]).replace("\\", "/").rsplit("/", 1)[-1])


def _class_colors(report: DatasetReport) -> list[Color]:
    prefix = "thing" if report.rules.dataset_type == "instance" else "stuff"
    given = MetadataCatalog.get(report.name).get(f"{prefix}_colors") or []
    if len(given) != len(report.rules.names):
        return [color_of(label) for label in range(len(report.rules.names))]
    return [(int(r), int(g), int(b)) for r, g, b in given]


def _segment_regions(report: DatasetReport, record: dict[str, Any], colors: Sequence[Color]) -> list[Region]:
    seen: Counter[int] = Counter()
    painted, texts = {}, {}
    for segment in record["segments_info"]:
        label = segment["category_id"]
        painted[segment["id"]] = shade_of(colors[label], seen[label])
        texts[segment["id"]] = report.rules.names[label]
        seen[label] += 1
    return regions_from_map(read_panoptic_png(record["pan_seg_file_name"]), painted, texts)


def _annotation_regions(
    report: DatasetReport, record: dict[str, Any], size: tuple[int, int], colors: Sequence[Color]
) -> list[Region]:
    seen: Counter[int] = Counter()
    regions = []
    for annotation in record["annotations"]:
        label, patch = annotation["category_id"], segmentation_to_patch(annotation["segmentation"], size)
        if patch.bits.size and not annotation.get("iscrowd", 0):
            color = shade_of(colors[label], seen[label])
            regions.append(Region(patch.bits, patch.left, patch.top, color, report.rules.names[label]))
            seen[label] += 1
    return regions
