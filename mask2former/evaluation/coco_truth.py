"""Ground truth of instance AP: a COCO json, made safe for pycocotools."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from mask2former.data.masks import rle_runs, without_hollow_polygons
from mask2former.evaluation.panoptic_truth import PanopticTruth
from mask2former.evaluation.rle import encode_label_map
from mask2former.files import read_json

logger = logging.getLogger(__name__)

_READERS = 8  # threads


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


def truth_from_panoptic(panoptic: PanopticTruth, thing_ids: Collection[int] | None = None) -> COCO:
    """The things of panoptic annotations as ground truth of instances; crowd regions stay crowds.

    Args:
        panoptic: annotations.
        thing_ids: categories that are things; those with `isthing` in the annotation file if None.
    """
    things = {
        i: c for i, c in panoptic.categories.items() if c.get("isthing") and (thing_ids is None or i in thing_ids)
    }
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    # Threads, not processes: decoding and comparing release the interpreter, and a GPU may be in use by now.
    with ThreadPoolExecutor(_READERS) as pool:
        for image, found in pool.map(functools.partial(_things_of, panoptic, things), panoptic.annotations):
            images.append(image)
            annotations.extend({"id": n, **ann} for n, ann in enumerate(found, start=len(annotations) + 1))
    return index_coco({"images": images, "categories": list(things.values()), "annotations": annotations})


def _things_of(
    panoptic: PanopticTruth, things: Collection[int], annotation: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One picture: its COCO image record and annotations without `id`."""
    ids = panoptic.id_map(annotation)
    codes = encode_label_map(ids)
    found = [
        {
            "image_id": annotation["image_id"],
            "category_id": segment["category_id"],
            "iscrowd": int(segment.get("iscrowd", 0)),
            "segmentation": codes[segment["id"]],
            "area": float(mask_util.area(codes[segment["id"]])),
            "bbox": mask_util.toBbox(codes[segment["id"]]).tolist(),
        }
        for segment in annotation["segments_info"]
        if segment["category_id"] in things and segment["id"] in codes
    ]
    return {"id": annotation["image_id"], "height": ids.shape[0], "width": ids.shape[1]}, found


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
