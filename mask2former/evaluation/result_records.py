"""The checked reader of COCO result records, which come from files that anybody may have written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools.coco import COCO

from ..data.datasets.coco_annotations import check_box, check_score, is_id
from ..errors import BadRecordError
from ..structures.masks import SegmentationError
from ..structures.rle import checked_rle

logger = logging.getLogger(__name__)


def checked_results(
    results: Sequence[Any], truth: COCO, task: str, file: str = "instance results"
) -> list[dict[str, Any]]:
    """Check COCO result records and return them with what a task compares.

    Args:
        results: `image_id`, `category_id`, `score`, and `segmentation` as RLE or `bbox` as XYWH each.
        truth: ground truth; results of categories that it does not have are counted in the log.
        task: "segm", "bbox" or "boundary".
        file: for messages.

    Returns:
        New records; RLEs are compressed.

    Raises:
        BadRecordError: a record is malformed, or its image or the size of its mask is not in the ground truth.
    """
    field = "bbox" if task == "bbox" else "segmentation"
    checked, foreign = [], 0
    for position, record in enumerate(results):
        where = f"record {position}"
        keys = ("image_id", "category_id", "score", field)
        missing = [key for key in keys if not isinstance(record, Mapping) or key not in record]
        if missing:
            raise BadRecordError(file, f"has no {' and no '.join(missing)}", where)
        image_id, category = record["image_id"], record["category_id"]
        image = truth.imgs.get(image_id) if is_id(image_id) or isinstance(image_id, str) else None
        if image is None:
            raise BadRecordError(file, f"is for image {image_id!r}, which the ground truth does not list", where)
        if not is_id(category):
            raise BadRecordError(file, f"category {category!r} is not an integer", where)
        foreign += category not in truth.cats
        entry = {"image_id": image_id, "category_id": category, "score": check_score(file, record["score"], where)}
        if field == "bbox":
            entry["bbox"] = check_box(file, record["bbox"], where)
        else:
            try:
                entry["segmentation"] = checked_rle(record["segmentation"], (image["height"], image["width"]))
            except SegmentationError as error:
                raise BadRecordError(file, f"mask of image {image_id!r}: {error}", where) from error
        checked.append(entry)
    if foreign:
        logger.warning("%s: %d of %d records have a category that the ground truth lacks", file, foreign, len(checked))
    return checked
