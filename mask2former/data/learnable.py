"""Find out before a training whether its ground truth has anything to learn from, and if not, why.

A training on crowd regions only, on polygons that lie outside of their images, or on label maps whose objects have the
ignored value runs without an error: its losses are 0 and its model finds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import BadRecordError, first_few
from ..structures.masks import SegmentationError, decode_counts, segmentation_to_patch
from ..utils.file_io import read_json_object
from .image_io import read_label_map, read_panoptic_png

_SAMPLE = 16  # files that are read at the start of a training
_DRAWN = 2000  # thin objects that are drawn to see whether they cover a pixel
_CROWDED = 0.1  # part of the images with crowd regions only, from which on it is worth a warning
_SMALL = 8  # pixels: in smaller images coordinates in 0..1 may be pixels

_REASONS = {
    "crowd": 'are crowd regions ("iscrowd": 1), which are never learned; set it to 0 where a mask is one object',
    "unit": "have coordinates in 0..1: normalized polygons; multiply x by the width and y by the height of the image",
    "outside": "lie outside of their image; check the coordinates, and width and height of the images",
    "hidden": "have no segmentation in any frame",
    "empty": "cover no pixel",
}


class Finding(NamedTuple):
    """What is wrong with the ground truth as a whole: `error` where nothing can be learned, or `warning`; or ''."""

    error: str = ""
    warning: str = ""


@dataclass
class _Objects:
    """Objects of all records: the number of each kind, and the usable ones of each record that has objects."""

    reasons: Counter[str] = field(default_factory=Counter)
    total: int = 0
    left: dict[int, int] = field(default_factory=dict)  # position of a record with objects -> usable ones


# ------------------------------------------------------------------ annotations
def check_objects(records: Sequence[Mapping[str, Any]], things: str = "images") -> Finding:
    """Check the "annotations" of images or videos, as the readers of datasets return them.

    Args:
        records: in detectron2's format; videos have "segmentations" for each object.
        things: what they are, for the messages.
    """
    if not records or not all(isinstance(record.get("annotations"), list) for record in records):
        return Finding()  # the mapper names the record
    found = _judge(records)
    if not found.total:
        return Finding(f"none of the {len(records)} {things} has an object")
    listed = "; ".join(f"{count} {_REASONS[reason]}" for reason, count in found.reasons.most_common())
    unusable = found.reasons.total()
    if unusable == found.total:
        return Finding(f"none of the {found.total} objects in {len(records)} {things} can be learned: {listed}")
    bare = [position for position, count in found.left.items() if not count]
    if not unusable or (set(found.reasons) == {"crowd"} and len(bare) < _CROWDED * len(records)):
        return Finding()
    text = f"{unusable} of {found.total} objects cannot be learned: {listed}"
    if bare:
        shown = first_few([_name(records[position]) for position in bare], 3)
        text += f". {len(bare)} of {len(records)} {things} have no other: {shown}"
    return Finding(warning=text)


def _name(record: Mapping[str, Any]) -> str:
    return str(record.get("file_name") or next(iter(record.get("file_names") or ()), "a record"))


def _judge(records: Sequence[Mapping[str, Any]]) -> _Objects:
    found = _Objects()
    polygons: list[tuple[int, list[Any], tuple[int, int]]] = []  # position of the record, polygons, image size
    for position, record in enumerate(records):
        size = (record.get("height") or 0, record.get("width") or 0)
        for entry in record["annotations"]:
            found.total += 1
            found.left[position] = found.left.get(position, 0) + 1
            shapes = _shapes(entry)
            reason = "crowd" if isinstance(entry, dict) and entry.get("iscrowd", 0) else ""
            if not reason and shapes is not None:
                reason = "hidden" if not shapes else "empty" if all(_is_empty(shape) for shape in shapes) else ""
                if not reason and size[0] and all(isinstance(shape, list) for shape in shapes):
                    # Most objects have one frame, whose list is not copied.
                    joined = shapes[0] if len(shapes) == 1 else [points for shape in shapes for points in shape]
                    polygons.append((position, joined, size))
            if reason:
                found.reasons[reason] += 1
                found.left[position] -= 1
    for (position, _, _), reason in zip(polygons, _judge_polygons(polygons), strict=True):
        if reason:
            found.reasons[reason] += 1
            found.left[position] -= 1
    return found


def _shapes(entry: Any) -> list[Any] | None:
    """Return the segmentations of an object, in all frames that show it; None for what only the mapper can judge."""
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("segmentations"), list):
        return [shape for shape in entry["segmentations"] if shape is not None and not _is_no_shape(shape)]
    shape = entry.get("segmentation")
    return None if shape is None or _is_no_shape(shape) else [shape]


def _is_no_shape(shape: Any) -> bool:
    return isinstance(shape, (list, dict)) and not shape


def _is_empty(shape: Any) -> bool:
    """Return whether an RLE has no pixel inside; malformed ones are left to the mapper."""
    counts = shape.get("counts") if isinstance(shape, dict) else None
    try:
        if isinstance(counts, (str, bytes)) and len(counts) <= _SMALL:  # longer ones have several runs
            return not decode_counts(counts)[1::2].any()
        return isinstance(counts, list) and not any(counts[1::2])
    except SegmentationError:
        return False


def _judge_polygons(objects: Sequence[tuple[int, list[Any], tuple[int, int]]]) -> Iterator[str]:
    """Yield for each object why it cannot be learned, or ''; computed for all together, because there may be a million.

    Only thin objects, which may cover no pixel, are drawn.
    """
    flat, lengths, counts = _flatten(objects)
    if not len(counts):
        return
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])  # polygon with which an object begins
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) // 2
    height, width = (np.repeat([size[axis] for _, _, size in objects], counts) for axis in (0, 1))
    (left, right), (top, bottom) = (
        (np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)) for values in (flat[::2], flat[1::2])
    )
    outside = (right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)
    inside = np.minimum(left, top) >= -0.1
    fractions = np.logical_or.reduceat(flat != np.rint(flat), starts * 2)
    unit = inside & (np.maximum(right, bottom) <= 1.1) & (np.maximum(height, width) > _SMALL)
    # Polygons of less than two pixels in one direction may cover none.
    thin = (
        np.minimum(np.minimum(right, width) - np.maximum(left, 0), np.minimum(bottom, height) - np.maximum(top, 0)) < 2
    )
    outside, unit, thin = (np.logical_and.reduceat(values, firsts) for values in (outside, unit, thin))
    # One pixel in the corner has integers, and is an object unless there are no others.
    unit &= np.logical_or.reduceat(fractions, firsts) | bool(unit.all())
    drawn = 0
    for number, (_, polygons, size) in enumerate(objects):
        if outside[number] or unit[number] or not thin[number]:
            yield "outside" if outside[number] else "unit" if unit[number] else ""
            continue
        drawn += 1
        yield "empty" if drawn <= _DRAWN and not _covers(polygons, size) else ""


def _flatten(objects: Sequence[tuple[int, list[Any], tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all coordinates float (V,), the number of each polygon's (P,), and each object's number of polygons (N,).

    A polygon that is malformed, which the mapper names, becomes one that covers every image.
    """
    every: list[Sequence[float]] = [points for _, polygons, _ in objects for points in polygons]
    counts = np.array([len(polygons) for _, polygons, _ in objects], dtype=np.int64)
    try:
        lengths = np.array([len(points) for points in every], dtype=np.int64)
        good = ((lengths >= 6) & (lengths % 2 == 0)).all()
        flat = np.fromiter(chain.from_iterable(every), np.float64, int(lengths.sum())) if good else None
    except (TypeError, ValueError, OverflowError):
        flat = None
    if flat is None:  # some polygon is malformed, or a list of pairs
        every = [_points(points) for points in every]
        lengths = np.array([len(points) for points in every], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(every), np.float64, int(lengths.sum()))
    return flat, lengths, counts


_EVERYWHERE = (-1.0, -1.0, 1e9, -1.0, 1e9, 1e9)


def _points(points: Any) -> Sequence[float]:
    try:
        values = np.asarray(points, dtype=np.float64).reshape(-1).tolist()
    except (TypeError, ValueError, OverflowError):
        return _EVERYWHERE
    return values if len(values) >= 6 and len(values) % 2 == 0 else _EVERYWHERE


def _covers(polygons: list[Any], size: tuple[int, int]) -> bool:
    try:
        return bool(segmentation_to_patch(polygons, size).bits.any())
    except SegmentationError:
        return True  # the mapper names it


# ------------------------------------------------------------------ maps
def check_segments(records: Sequence[Mapping[str, Any]]) -> Finding:
    """Check "segments_info" of panoptic records, and in a sample of the PNG files whether the segments have pixels."""
    segments = [segment for record in records for segment in record.get("segments_info") or [{}]]
    if not records or not all(isinstance(segment, dict) for segment in segments):
        return Finding()
    crowds = sum(bool(segment.get("iscrowd", 0)) for segment in segments)
    total = sum("id" in segment for segment in segments)
    if crowds == total:
        rest = f"its {crowds} segments {_REASONS['crowd']}" if crowds else "'segments_info' is empty everywhere"
        return Finding(f"none of the {len(records)} images has a segment that can be learned: {rest}")
    for record in _sampled(records):
        requested = {segment["id"] for segment in record.get("segments_info") or [] if not segment.get("iscrowd", 0)}
        try:
            if requested & set(np.unique(read_panoptic_png(record["pan_seg_file_name"])).tolist()):
                return Finding()
        except (BadRecordError, KeyError):
            return Finding()  # the mapper names it
    return Finding(
        f"no PNG of the {len(records)} images has a pixel of one of its segments: the ids of 'segments_info' are not "
        "those of the files; check the directory of the PNG files, id = R + 256 G + 65536 B"
    )


def check_label_maps(records: Sequence[Mapping[str, Any]], names: Sequence[str], ignore_label: int) -> Finding:
    """Check a sample of the label maps of a semantic dataset, and all where the sample shows one class or none.

    Args:
        records: with "sem_seg_file_name".
        names: classes.
        ignore_label: value of pixels without a class.
    """
    values: Counter[int] = Counter()
    read = 0
    for record in _sampled(records):
        try:
            labels = read_label_map(record["sem_seg_file_name"])
        except (BadRecordError, KeyError):
            continue  # the mapper names it
        read += 1
        values.update(dict.fromkeys(np.unique(labels).tolist(), 1))
        if len(values.keys() - {ignore_label}) > 1:
            return Finding()
    return label_finding(values, read, names, ignore_label)


def label_finding(values: Mapping[int, int], count: int, names: Sequence[str], ignore_label: int) -> Finding:
    """Return what the values of `count` label maps say; their numbers of pixels (or of files) do not matter."""
    present = sorted(value for value, number in values.items() if number and value != ignore_label)
    ignored = bool(values.get(ignore_label))
    if not count or len(present) > 1 or (present and not 0 <= present[0] < len(names)):
        return Finding()
    if not present:
        return Finding(f"all pixels of the {count} label maps have the value {ignore_label}, which is ignored")
    only = f"{present[0]} ({names[present[0]]!r})"
    absent = first_few([repr(name) for index, name in enumerate(names) if index != present[0]])
    if absent and ignored and present[0] == 0:
        return Finding(
            f"the {count} label maps have only the values {only} and {ignore_label}, which is ignored; {absent} never "
            f"occurs. If {ignore_label} stands for a class, as in binary masks of 0 and 255, replace it in the files "
            "by the index of the class, or give another ignore_value"
        )
    if absent:
        return Finding(warning=f"the {count} label maps have no class but {only}; {absent} never occurs")
    if not ignored:
        return Finding()
    return Finding(
        warning=f"the label maps have only the values {only} and {ignore_label}, which is ignored. If {ignore_label} "
        f"stands for {names[0]!r}, and 0 for background: name two classes, and replace {ignore_label} in the files by 1"
    )


def _sampled(records: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Yield a random sample, always the same, and then all others."""
    order = np.random.default_rng(0).permutation(len(records))
    return (records[index] for index in chain(order[:_SAMPLE], np.sort(order[_SAMPLE:])))


# ------------------------------------------------------------------ a training
def why_no_objects(names: Iterable[str]) -> str:
    """Return what the annotation files of registered datasets say about objects that their readers left out."""
    reasons = []
    for name in names:
        file = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
        try:
            content = read_json_object(str(file)) if file else {"annotations": None}
        except (OSError, ValueError):
            continue
        entries = content.get("annotations") if file else []
        if not file:
            continue
        if not isinstance(entries, list) or not entries:
            state = "has no 'annotations'" if "annotations" not in content else "has an empty list 'annotations'"
            reasons.append(f"{file} {state}: is it the file of a test set?")
            continue
        keys = ("segmentation", "segmentations")
        boxes = sum(isinstance(entry, dict) and not any(entry.get(key) for key in keys) for entry in entries)
        text = f"the {len(entries)} annotations of {file} are left out"
        reasons.append(f"{text}: {boxes} have no segmentation, but training needs masks" if boxes else text)
    return "; ".join(reasons)
