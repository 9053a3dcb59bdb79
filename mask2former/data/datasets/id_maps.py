"""Instance annotations from a map of segment ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import BoxMode


class Object(NamedTuple):
    """What an id of a map stands for: its category, and whether it is a crowd region."""

    category_id: int
    iscrowd: bool


def annotations_from_ids(ids: np.ndarray, objects: Mapping[int, Object]) -> list[dict[str, Any]]:
    """Annotations in detectron2's format, in the order of the ids.

    Args:
        ids: int (H, W).
        objects: by id, which is not 0; other ids of the map are left out, and ids that do not occur have no annotation.

    Returns:
        For each object category_id, iscrowd, segmentation (compressed RLE), area, and bbox as XYWH.
    """
    from mask2former.evaluation.rle import encode_label_map  # which imports this package

    present = [segment for segment in np.unique(ids).tolist() if segment in objects]
    codes = encode_label_map(np.where(np.isin(ids, present), ids, 0))
    return [
        {
            "category_id": objects[segment].category_id,
            "iscrowd": int(objects[segment].iscrowd),
            "segmentation": codes[segment],
            "area": int(coco_mask.area(codes[segment])),
            "bbox": [float(side) for side in coco_mask.toBbox(codes[segment])],
            "bbox_mode": BoxMode.XYWH_ABS,
        }
        for segment in present
    ]
