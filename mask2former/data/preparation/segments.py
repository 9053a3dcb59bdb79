"""Segments of annotations: label maps, ids, and the records of the COCO formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRecordError
from ...structures.panoptic_ids import rgb_to_id
from ..datasets.categories import class_table
from ..datasets.coco_panoptic import Object, annotations_from_ids
from ..image_io import read_panoptic_png

SPREAD = 30  # largest difference of a channel between the color of a segment and that of its class
_DIVISOR = 256  # an id of an ADE20K object is class + 256 x number


# ------------------------------------------------------------------ label maps and ids
def relabel(values: np.ndarray, table: Mapping[int, int], void: int, dtype: type[np.integer] = np.uint8) -> np.ndarray:
    """Replace every value by its entry in a table, or by `void` if it has none.

    Args:
        values: int (H, W), not negative.
        table: old value -> new value.
        void: new value of all others.
        dtype: type of the result.

    Returns:
        The new values (H, W).
    """
    lookup = np.full(int(values.max(initial=0)) + 1, void, dtype)
    for old, new in table.items():
        if old < len(lookup):
            lookup[old] = new
    return lookup[values]


def read_ade20k_objects(path: Path) -> tuple[np.ndarray, dict[int, int]]:
    """Read the objects of one image of the ADE20K instance challenge (annotations_instance).

    Args:
        path: PNG with the class, 1-100, in the red channel and the number of the object, from 1, in the green one.

    Returns:
        int32 (H, W) with a key for each object, which increases with its number; and the class index of each key among
        the 150 of SceneParse150. Other values of the map are not objects.

    Raises:
        BadRecordError: the file is missing, broken or not an RGB image, or a class is unknown.
    """
    keys = read_panoptic_png(str(path)) % _DIVISOR**2  # class + 256 x number
    classes = {entry["instance_id"]: entry["id"] for entry in class_table("ade20k_instance")}
    objects = {}
    for key in np.unique(keys[keys >= _DIVISOR]).tolist():
        number, value = divmod(key, _DIVISOR)
        if value not in classes:
            raise BadRecordError(path, f"class {value} of object {number} is not in [1, {len(classes)}]")
        objects[key] = classes[value]
    return keys, objects


class SegmentIds:
    """Ids of the segments of one image, whose colors are close to those of their classes.

    The first segment of a class has the class's color, further ones an unused color near it. The same sequence of
    classes results in the same ids in every run.

    Args:
        colors: RGB color of each category, in [0, 255].
    """

    def __init__(self, colors: Mapping[int, Sequence[int]]) -> None:
        self._colors = colors
        self._taken = {0}  # black is void
        self._random = np.random.default_rng(0)

    def take(self, category: int) -> int:
        """Return an unused id for a segment of a category."""
        color = np.array(self._colors[category], np.int64)
        candidate = color
        while (segment := int(rgb_to_id(candidate.astype(np.uint8)))) in self._taken:
            candidate = np.clip(color + self._random.integers(-SPREAD, SPREAD + 1, 3), 0, 255)
        self._taken.add(segment)
        return segment


# ------------------------------------------------------------------ records
def box_of(mask: np.ndarray) -> list[int]:
    """Return x, y, width and height of a mask (H, W) that is not empty, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def image_record(image_id: str | int, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Build an entry of `images`; size is height and width in pixels."""
    return {"id": image_id, "file_name": file_name, "width": int(size[1]), "height": int(size[0])}


def segment_record(segment_id: int, category_id: int, mask: np.ndarray, iscrowd: int = 0) -> dict[str, Any]:
    """Build an entry of `segments_info`; the mask is bool (H, W) and not empty."""
    measures = {"area": int(np.count_nonzero(mask)), "bbox": box_of(mask)}
    return {"id": segment_id, "category_id": category_id, **measures, "iscrowd": iscrowd}


def instance_records(image_id: str | int, ids: np.ndarray, objects: Mapping[int, Object]) -> list[dict[str, Any]]:
    """Build the entries of `annotations` of one image, still without their ids.

    Args:
        image_id: id of the image.
        ids: int (H, W).
        objects: category and crowd flag by id, which is not 0; other ids of the map are ignored.

    Returns:
        category_id, iscrowd, segmentation (compressed RLE), area and bbox (XYWH), in the order of the ids.
    """
    records = annotations_from_ids(ids, objects)
    return [{"image_id": image_id, **{k: v for k, v in record.items() if k != "bbox_mode"}} for record in records]


def instance_annotation_file(
    categories: Sequence[Mapping[str, Any]], entries: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> dict[str, Any]:
    """Build the content of a COCO instance JSON file from images with their annotations.

    Annotation ids start from 1: pycocotools treats a matched object with id 0 as unmatched.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, records in entries:
        images.append(image)
        annotations += [{"id": len(annotations) + number, **record} for number, record in enumerate(records, 1)]
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def panoptic_annotation_file(
    categories: Sequence[Mapping[str, Any]], entries: Iterable[tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Any]:
    """Build the content of a COCO panoptic JSON file from images, each with its entry of `annotations`."""
    images, annotations = zip(*entries)
    return {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
