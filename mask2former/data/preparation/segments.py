"""Records of the COCO formats: images, instances, panoptic segments and their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..datasets.coco_panoptic import Object, annotations_from_ids

SPREAD = 30  # how far the colour of a further segment may lie from that of its class


class SegmentIds:
    """Ids of the segments of one picture, R + 256 G + 65536 B of colours close to those of their classes.

    The first segment of a class takes the class's colour, and further ones colours near it that are free. The same
    sequence of classes gives the same ids in every run.

    Args:
        colors: of each category, 0-255.
    """

    def __init__(self, colors: Mapping[int, Sequence[int]]) -> None:
        self._colors = colors
        self._taken = {0}  # black is void
        self._random = np.random.default_rng(0)

    def take(self, category: int) -> int:
        """An id that no segment has yet."""
        color = np.array(self._colors[category], np.int64)
        chosen = _pack(color)
        while chosen in self._taken:
            chosen = _pack(np.clip(color + self._random.integers(-SPREAD, SPREAD + 1, 3), 0, 255))
        self._taken.add(chosen)
        return chosen


def _pack(color: np.ndarray) -> int:
    return int(color @ (1, 256, 65536))


def panoptic_picture(ids: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of segment ids (H, W)."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def box_of(mask: np.ndarray) -> list[int]:
    """x, y, width and height of a mask (H, W) that is not empty, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def image_record(image_id: str | int, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """An entry of `images`; size is height and width."""
    return {"id": image_id, "file_name": file_name, "width": int(size[1]), "height": int(size[0])}


def segment_record(segment_id: int, category_id: int, mask: np.ndarray, iscrowd: int = 0) -> dict[str, Any]:
    """An entry of `segments_info`; the mask is bool (H, W) and not empty."""
    measures = {"area": int(np.count_nonzero(mask)), "bbox": box_of(mask)}
    return {"id": segment_id, "category_id": category_id, **measures, "iscrowd": iscrowd}


def instance_records(image_id: str | int, ids: np.ndarray, objects: Mapping[int, Object]) -> list[dict[str, Any]]:
    """The entries of `annotations` of one picture, still without their ids.

    Args:
        image_id: of the picture.
        ids: int (H, W).
        objects: dataset id and whether it is a crowd, by id, which is not 0; other ids of the map are left out.

    Returns:
        category_id, iscrowd, segmentation (compressed RLE), area and bbox (XYWH), in the order of the ids.
    """
    records = annotations_from_ids(ids, objects)
    return [{"image_id": image_id, **{k: v for k, v in record.items() if k != "bbox_mode"}} for record in records]


def instance_document(
    categories: Sequence[Mapping[str, Any]], entries: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> dict[str, Any]:
    """A COCO instance file of pictures with their annotations.

    Annotations are numbered from 1: pycocotools takes a matched object with id 0 for unmatched.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, records in entries:
        images.append(image)
        annotations += [{"id": len(annotations) + number, **record} for number, record in enumerate(records, 1)]
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def panoptic_document(
    categories: Sequence[Mapping[str, Any]], entries: Iterable[tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Any]:
    """A COCO panoptic file of pictures, each with its entry of `annotations`."""
    images, annotations = zip(*entries)
    return {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
