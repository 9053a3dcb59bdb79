"""Check training data of any format: what would train badly, and which settings its images need."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..errors import BadRecordError, first_few
from ..structures.masks import SegmentationError, segmentation_to_patch
from .formats import CocoData
from .formats.splitting import content_hash
from .inspect import DatasetReport, Rules, check_records
from .learnable import check_objects

DEFAULT_QUERIES = 100  # of most models
FEW = 5  # objects of a class with which it is hardly learned
_MOSTLY_EMPTY = 0.9
_TINY = 8  # pixels of an edge; masks are predicted at stride 4
_SEMANTIC_SAMPLE = 200
_SHOWN = 8


@dataclass
class TrainingReport:
    """Contents of training data, and what is wrong with it."""

    name: str
    splits: dict[str, CocoData]
    dataset: DatasetReport  # of all splits together, for the contact sheet
    queries: int  # number of queries that the images need
    errors: list[str] = field(default_factory=list)  # would train badly, or not at all
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_training_data(
    splits: Mapping[str, CocoData],
    name: str,
    problems: Sequence[BadRecordError] = (),
    *,
    queries: int = DEFAULT_QUERIES,
    limit: int | None = None,
    workers: int | None = None,
) -> TrainingReport:
    """Check training data that `load_data` read.

    Args:
        splits: what `load_data` returned.
        name: of the data, for messages.
        problems: what `load_data` collected.
        queries: number of queries of the model, the most objects that it finds in an image.
        limit: read at most so many images, evenly spread; None reads all. Objects are counted in all, and all files
            are compared.
        workers: worker processes; None for one per core, at most 16.
    """
    records = [record for data in splits.values() for record in records_of(data)]
    names = tuple(next(iter(splits.values())).names) if splits else ()
    dataset = check_records(name, Rules("instance", names, len(names), 255), records, limit, workers)
    counts = [len(_objects(record)) for record in records]
    report = TrainingReport(name, dict(splits), dataset, suggest_queries(max(counts, default=0)))
    report.notes += list(dict.fromkeys(note for data in splits.values() for note in data.notes))
    _check_counts(report, records, counts, queries)
    for split, data in splits.items():
        finding = check_objects(records_of(data))
        if finding.error and data.content["annotations"]:
            report.errors.append(f"{split}: {finding.error}")
        if finding.warning:
            report.warnings.append(f"{split}: {finding.warning}")
    _check_classes(report)
    _check_copies(report)
    _check_objects(report, records)
    # After what concerns a split: only the first errors are printed.
    report.errors += [str(problem) for problem in problems] + dataset.problems + dataset.notes
    return report


def records_of(data: CocoData) -> list[dict[str, Any]]:
    """Return records in detectron2's format, with contiguous classes, in the order of the images."""
    classes = {key: number for number, key in enumerate(sorted(c["id"] for c in data.content["categories"]))}
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in data.content["annotations"]:
        by_image[entry["image_id"]].append({**entry, "category_id": classes[entry["category_id"]]})
    return [
        {**image, "file_name": str(data.image_root / image["file_name"]), "annotations": by_image[image["id"]]}
        for image in data.content["images"]
    ]


def suggest_queries(most: int) -> int:
    """Return a number of queries for images of up to `most` objects: a few more, in hundreds."""
    return max(DEFAULT_QUERIES, math.ceil(most / 95) * 100)


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in record["annotations"] if not entry["iscrowd"]]


def _check_counts(report: TrainingReport, records: list[dict[str, Any]], counts: list[int], queries: int) -> None:
    if not records:
        report.errors.append(f"{report.name}: no image can be used")
        return
    crowded = [record for record, count in zip(records, counts, strict=True) if count > queries]
    if crowded:
        shown = first_few([Path(record["file_name"]).name for record in crowded], 3)
        report.errors.append(
            f"{len(crowded)} images have more objects (up to {max(counts)}) than the model has queries ({queries}), so "
            f"objects would be missed: {shown}. Use MODEL.MASK_FORMER.NUM_OBJECT_QUERIES {report.queries} and check "
            f"with --queries {report.queries}, or cut the images into tiles"
        )
    for split, data in report.splits.items():
        shown_ids = {entry["image_id"] for entry in data.content["annotations"]}
        total = len(data.content["images"])
        empty = total - len(shown_ids)
        if total and not shown_ids:
            report.errors.append(f"{split}: none of its {total} images has an object")
        elif total and empty > _MOSTLY_EMPTY * total:
            report.errors.append(
                f"{split}: {empty} of {total} images have no objects; is a part of the annotations missing? Leave out "
                "most of the images without objects (--no-negatives)"
            )
    if len(report.splits) == 1:
        report.notes.append("there is no validation split; 'mask2former split' makes one")


def _check_classes(report: TrainingReport) -> None:
    counts = class_counts(report.splits)
    train = "train" if "train" in report.splits else next(iter(report.splits), None)
    for name, by_split in counts.items():
        if not any(by_split.values()):
            report.warnings.append(f"class {name!r} has no object")
        elif not by_split[train or ""]:
            report.warnings.append(f"class {name!r} occurs, but not in {train}, so it cannot be learned")
        elif by_split[train or ""] < FEW:
            report.warnings.append(f"class {name!r} has only {by_split[train or '']} objects in {train}")


def class_counts(splits: Mapping[str, CocoData]) -> dict[str, Counter[str]]:
    """Return class -> split -> number of objects that are no crowds, classes in their order."""
    result: dict[str, Counter[str]] = {}
    for split, data in splits.items():
        names = {entry["id"]: entry["name"] for entry in data.content["categories"]}
        for name in data.names:
            result.setdefault(name, Counter())
        for entry in data.content["annotations"]:
            result[names[entry["category_id"]]][split] += not entry["iscrowd"]
    return result


def _check_copies(report: TrainingReport) -> None:
    """Find images with the same bytes: an error between splits, a warning inside of one."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, data in report.splits.items():
        for image in data.content["images"]:
            path = data.image_root / image["file_name"]
            if path.is_file():
                by_size[path.stat().st_size].append((split, path))
    by_hash: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for entries in by_size.values():
        for split, path in entries if len(entries) > 1 else []:
            by_hash[content_hash(path)].append((split, path))
    inside = []
    for copies in by_hash.values():
        first = copies[0]
        other = next((entry for entry in copies if entry[0] != first[0]), None)
        if other is not None:
            report.errors.append(
                f"the same image is in {first[0]} and {other[0]}, so results would be too good: {first[1]} and "
                f"{other[1]}; remove one, or split again with 'mask2former split'"
            )
        elif len(copies) > 1:
            inside.append(f"{copies[0][1].name} and {copies[1][1].name}")
    if inside:
        report.warnings.append(f"{len(inside)} images occur twice in a split: {first_few(inside, 3)}")


def _check_objects(report: TrainingReport, records: list[dict[str, Any]]) -> None:
    repeated = []
    for record in records:
        seen = Counter(json.dumps([e["category_id"], e["segmentation"]], default=str) for e in record["annotations"])
        if any(count > 1 for count in seen.values()):
            repeated.append(Path(record["file_name"]).name)
    if repeated:
        report.warnings.append(f"{len(repeated)} images have an object twice: {first_few(repeated, 3)}")
    areas = np.array([entry["area"] for record in records for entry in _objects(record)], dtype=np.float64)
    if len(areas) and np.median(areas) < _TINY**2:
        report.warnings.append(
            f"half of the objects are smaller than {_TINY}x{_TINY} pixels (median area {np.median(areas):.0f}); "
            "enlarge the images, with INPUT.MIN_SCALE and MAX_SCALE in training and INPUT.MIN_SIZE_TEST in inference"
        )
    if any(data.format == "label_maps" for data in report.splits.values()):
        text = _semantic_hint(records)
        if text:
            report.errors.append(text)


def _semantic_hint(records: Sequence[dict[str, Any]]) -> str | None:
    """Return what is wrong where label maps hold classes and not objects: few values, each in many separate places."""
    from scipy import ndimage

    with_objects = [record for record in records if record["annotations"]]
    step = max(1, len(with_objects) // _SEMANTIC_SAMPLE)
    scattered = total = most = 0
    for record in with_objects[::step]:
        size = (record["height"], record["width"])
        most = max(most, len(record["annotations"]))
        for entry in record["annotations"]:
            try:
                bits = segmentation_to_patch(entry["segmentation"], size).bits
            except SegmentationError:
                continue
            labels, count = ndimage.label(bits, structure=np.ones((3, 3)))
            pieces = np.bincount(labels.reshape(-1))[1:] if count else np.zeros(0)
            scattered += int((pieces >= max(4, 0.02 * pieces.sum())).sum() > 2) if count else 0
            total += 1
    if total and most <= 50 and scattered > 0.4 * total:
        return (
            f"the label maps look like classes instead of objects: {scattered} of {total} values lie in more than two "
            "separate places of their image. Give each object its own value; for semantic segmentation use "
            "DATASETS.SEMANTIC_FOLDER"
        )
    return None


def format_training_report(report: TrainingReport) -> str:
    """Return the report as text for a terminal: splits, classes, sizes, notes, warnings and errors."""
    kinds = sorted({data.format for data in report.splits.values()})
    lines = [f"{report.name}: format {', '.join(kinds) or 'unknown'}"]
    headers = ["split", "images", "without objects", "objects", "per image: median", "most", "crowds"]
    rows = [_split_row(split, data) for split, data in report.splits.items()]
    lines.append(tabulate(rows, headers, tablefmt="pipe", numalign="right"))
    counts = class_counts(report.splits)
    rows = [[name[:40], *(by_split[split] for split in report.splits)] for name, by_split in counts.items()]
    lines.append(tabulate(rows, ["class", *report.splits], tablefmt="pipe", numalign="right"))
    lines += _size_lines(report)
    lines.append(f"Queries: {report.queries} or more (MODEL.MASK_FORMER.NUM_OBJECT_QUERIES)")
    for title, entries in (("note", report.notes), ("warning", report.warnings), ("error", report.errors)):
        lines += [f"{title}: {entry}" for entry in entries[:_SHOWN]]
        if len(entries) > _SHOWN:
            lines.append(f"{title}: and {len(entries) - _SHOWN} more")
    if not report.errors:
        lines.append("Nothing that would train badly was found.")
    return "\n".join(lines)


def _split_row(split: str, data: CocoData) -> list[Any]:
    per_image = Counter(entry["image_id"] for entry in data.content["annotations"] if not entry["iscrowd"])
    images = data.content["images"]
    counts = [per_image[image["id"]] for image in images]
    empty = len({image["id"] for image in images} - {entry["image_id"] for entry in data.content["annotations"]})
    crowds = sum(entry["iscrowd"] for entry in data.content["annotations"])
    median = f"{np.median(counts):.0f}" if counts else "-"
    return [split, len(images), empty, sum(counts), median, max(counts, default=0), crowds]


def _size_lines(report: TrainingReport) -> list[str]:
    lines = []
    sizes = [(image["width"], image["height"]) for data in report.splits.values() for image in data.content["images"]]
    if sizes:
        widths, heights = np.array(sizes).T
        lines.append(
            f"Images: width {widths.min()} to {widths.max()} (median {np.median(widths):.0f}), height {heights.min()} "
            f"to {heights.max()} (median {np.median(heights):.0f}) pixels"
        )
    areas = [
        entry["area"]
        for data in report.splits.values()
        for entry in data.content["annotations"]
        if not entry["iscrowd"]
    ]
    if areas:
        low, middle, high = np.sqrt(np.percentile(areas, [10, 50, 90]))
        lines.append(f"Objects: size (root of the area) {middle:.0f} pixels, 80 % from {low:.0f} to {high:.0f}")
    return lines
