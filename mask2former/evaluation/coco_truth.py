"""Ground truth of instance AP: a COCO json, made safe for pycocotools."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import Any

import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from mask2former.data.masks import rle_runs, without_hollow_polygons
from mask2former.files import read_json

logger = logging.getLogger(__name__)


def index_coco(dataset: dict[str, Any]) -> COCO:
    """A pycocotools index over an annotation dict (shared, not copied), without pycocotools' printing."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def load_coco_truth(path: str | os.PathLike[str]) -> COCO:
    """Read a COCO json and repair what pycocotools trips over.

    - Annotations are renumbered from 1. pycocotools takes the id 0 for "unmatched", which silently lowers AP,
      and keeps only the last of several annotations that share an id.
    - A missing `iscrowd` is 0. A missing `area` is the area of the mask, or of the box where there is none.
    - Annotations with an empty segmentation are left out and counted in the log: there is nothing to find.

    A file without `annotations` (a test set) is returned as it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or `images`/`categories`/a field of a record is missing; names file and record.
    """
    dataset = read_json(path, "instance annotations")
    missing = [key for key in ("images", "categories") if not isinstance(dataset, dict) or key not in dataset]
    if missing:
        raise ValueError(f"{path}: not a COCO instance annotation file, it has no {' and no '.join(missing)}")
    for position, image in enumerate(dataset["images"]):
        absent = [key for key in ("id", "height", "width") if key not in image]
        if absent:
            raise ValueError(f"{path}: images[{position}] has no {' and no '.join(absent)}")
    if "annotations" not in dataset:
        return index_coco(dataset)

    kept: list[dict[str, Any]] = []
    ids = [ann.get("id") for ann in dataset["annotations"]]
    for position, ann in enumerate(dataset["annotations"]):
        for key in ("image_id", "category_id"):
            if key not in ann:
                raise ValueError(f"{path}: annotations[{position}] has no {key}")
        if "segmentation" in ann:
            ann["segmentation"] = without_hollow_polygons(ann["segmentation"])
            if not ann["segmentation"]:
                continue
        ann["id"] = len(kept) + 1
        ann.setdefault("iscrowd", 0)
        kept.append(ann)
    if len(kept) < len(ids):
        logger.warning(
            "%s: %d annotations with an empty segmentation are left out", path, len(ids) - len(kept)
        )
    if len(set(ids)) < len(ids) or 0 in ids:
        logger.info("%s: annotation ids repeat or hold 0; they are renumbered for the evaluation", path)
    dataset["annotations"] = kept
    coco = index_coco(dataset)
    for ann in kept:
        _complete(ann, coco, path)
    return coco


def _complete(ann: dict[str, Any], coco: COCO, path: str | os.PathLike[str]) -> None:
    """Fill in the area and turn the mask into RLE: a broken one is found before inference, not after."""
    where = f"{path}: annotation {ann['id']} (counted from 1) of image {ann['image_id']!r}"
    if "segmentation" in ann and ann["image_id"] in coco.imgs:
        image = coco.imgs[ann["image_id"]]
        try:
            if isinstance(ann["segmentation"], dict):
                # pycocotools never returns from some codes whose runs do not add up.
                rle_runs(ann["segmentation"], (image["height"], image["width"]))
            rle = coco.annToRLE(ann)
            area = float(mask_util.area(rle))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{where} has a broken segmentation: {error!r}") from error
        if list(rle["size"]) != [image["height"], image["width"]]:
            raise ValueError(
                f"{where}: its mask is (h, w) = {list(rle['size'])}, the image is "
                f"{[image['height'], image['width']]}"
            )
        ann["segmentation"] = rle
        ann.setdefault("area", area)
    elif "bbox" in ann:
        ann.setdefault("area", float(ann["bbox"][2] * ann["bbox"][3]))
    elif "segmentation" not in ann:
        raise ValueError(f"{where} has neither segmentation nor bbox")
