"""Annotations of rendered scenes: segments of COCO panoptic, objects of COCO instance and of YouTube-VIS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from ...structures.rle import Rle, encode_label_map
from .rendering import Rendering
from .scene import CLASSES

_ENTRIES = {entry["name"]: entry for entry in CLASSES}
_INDEX = {entry["name"]: index for index, entry in enumerate(CLASSES)}
_PER_CLASS = 1000  # segment id = category id x 1000 + number, as in Cityscapes


def segment_ids(rendering: Rendering) -> np.ndarray:
    """Return int64 (1 + stuff + things,): the segment id of each id of `Rendering.ids`; of 0, which is unused, 0."""
    categories = [_ENTRIES[name]["id"] for name in rendering.names]
    return np.array([0, *(_PER_CLASS * category + number for number, category in enumerate(categories, start=1))])


def class_indices(rendering: Rendering) -> np.ndarray:
    """Return uint8 (1 + stuff + things,): the class index of each id of `Rendering.ids`; of 0, which is unused, 255."""
    return np.array([255, *(_INDEX[name] for name in rendering.names)], np.uint8)


def segments(rendering: Rendering, frame: int = 0) -> list[dict[str, Any]]:
    """Return one entry for each visible stuff and thing of a frame, in the order of the ids.

    Returns:
        "id" (of the panoptic PNG), "category_id", "isthing", "iscrowd" 0, "segmentation" (compressed RLE), "area"
        (pixels), "bbox" (XYWH).
    """
    numbers = segment_ids(rendering)
    entries = []
    for number, (rle, area, box) in _encode(rendering.ids[frame]).items():
        category = _ENTRIES[rendering.names[number - 1]]
        head = {"id": int(numbers[number]), "category_id": category["id"], "isthing": category["isthing"]}
        entries.append({**head, "iscrowd": 0, "segmentation": rle, "area": area, "bbox": box})
    return entries


def tracks(rendering: Rendering) -> list[dict[str, Any]]:
    """Return one entry for each thing of a clip that is visible in some frame, from the lowest to the topmost.

    Returns:
        "category_id", "iscrowd" 0, and for each frame an entry of "segmentations" (compressed RLE), "areas" and
        "bboxes": null where the thing is not visible.
    """
    frames = [_encode(ids) for ids in rendering.ids]
    entries = []
    for number, thing in enumerate(rendering.scene.things, start=len(rendering.scene.stuff) + 1):
        rles, areas, boxes = zip(*(frame.get(number, (None, None, None)) for frame in frames), strict=True)
        entry = {"category_id": _ENTRIES[thing.category]["id"], "iscrowd": 0, "segmentations": list(rles)}
        entries.append({**entry, "areas": list(areas), "bboxes": list(boxes)})
    return entries


def _encode(ids: np.ndarray) -> dict[int, tuple[Rle, int, list[int]]]:
    """Return id -> RLE, area in pixels and box (XYWH) of each id of a map, in ascending order."""
    rles = encode_label_map(ids)
    areas, boxes = coco_mask.area(list(rles.values())), coco_mask.toBbox(list(rles.values()))
    values = zip(rles.values(), areas.tolist(), boxes.astype(int).tolist(), strict=True)
    return dict(zip(rles, values, strict=True))
