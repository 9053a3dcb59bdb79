"""Ground truth for evaluation: COCO instances with checked masks, and panoptic annotations."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools.coco import COCO

from ..structures.masks import rle_runs, without_degenerate_polygons
from ..structures.panoptic_ids import rgb_to_id
from ..structures.rle import encode_label_map
from ..utils.file_io import read_json


class PanopticTruth:
    """Panoptic annotations by image id; id maps are read on demand."""

    def __init__(self, json_file: str, root: str) -> None:
        """
        Args:
            json_file: COCO panoptic annotation file.
            root: directory of the annotation PNGs.

        Raises:
            FileNotFoundError: the annotation file or the directory is missing.
            ValueError: the file is not a panoptic annotation file with ground truth.
        """
        self.json_file = json_file
        self.root = root
        self.content: dict[str, Any] = read_json(json_file, "panoptic annotations")
        for key in ("annotations", "categories"):
            if key not in self.content:
                raise ValueError(f"{json_file}: not a panoptic annotation file with ground truth, it has no {key}")
        for annotation in self.content["annotations"]:
            if "segments_info" not in annotation or "file_name" not in annotation:
                raise ValueError(
                    f"{json_file}: image {annotation.get('image_id')!r} has no segments_info or file_name; "
                    f"use the panoptic annotation file, not the instance annotation file"
                )
        if not PathManager.isdir(root):
            raise FileNotFoundError(f"panoptic annotations: no directory {root} with the PNGs that {json_file} names")
        self.categories: dict[int, dict[str, Any]] = {c["id"]: c for c in self.content["categories"]}
        # Dataset loaders convert numeric ids to int, the JSON may hold strings: compare as strings.
        self._by_image = {str(a["image_id"]): a for a in self.content["annotations"]}

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """Return one dict per image: `image_id`, `file_name`, `segments_info`."""
        return list(self._by_image.values())

    def annotation(self, image_id: Any) -> dict[str, Any]:
        """Return the annotation of an image.

        Raises ValueError if the file does not list the image.
        """
        try:
            return self._by_image[str(image_id)]
        except KeyError:
            raise ValueError(f"{self.json_file} has no annotation for image {image_id!r}") from None

    def id_map(self, annotation: dict[str, Any]) -> np.ndarray:
        """Read the (h, w) int32 segment ids of one annotation.

        Raises FileNotFoundError if the PNG is missing, ValueError if it is not an RGB image.
        """
        path = os.path.join(self.root, annotation["file_name"])
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"panoptic annotations: no file {path}, which {self.json_file} names")
        with PathManager.open(path, "rb") as stream, Image.open(stream) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise ValueError(f"{path}: a panoptic annotation must be an RGB PNG, got mode {image.mode}")
            return rgb_to_id(np.asarray(image)[..., :3])


logger = logging.getLogger(__name__)

_READERS = 8  # threads


def index_coco(dataset: dict[str, Any]) -> COCO:
    """Build a pycocotools index of an annotation dict (shared, not copied), without the output of pycocotools."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def load_coco_truth(path: str | os.PathLike[str]) -> COCO:
    """Load a COCO annotation file and repair what pycocotools does not handle.

    - Annotations are renumbered from 1: pycocotools takes the id 0 for "unmatched", which silently lowers AP, and
      keeps only the last of several annotations that share an id.
    - A missing `iscrowd` is 0. A missing `area` is the area of the mask, or of the box where there is none.
    - Annotations with an empty segmentation are left out, and their number is logged.

    A file without `annotations` (a test set) is returned unchanged.

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
            ann["segmentation"] = without_degenerate_polygons(ann["segmentation"])
            if not ann["segmentation"]:
                continue
        ann["id"] = len(kept) + 1
        ann.setdefault("iscrowd", 0)
        kept.append(ann)
    if len(kept) < len(ids):
        logger.warning("%s: %d annotations with an empty segmentation are left out", path, len(ids) - len(kept))
    if len(set(ids)) < len(ids) or 0 in ids:
        logger.info("%s: annotation ids are not unique or contain 0; they are renumbered for evaluation", path)
    dataset["annotations"] = kept
    coco = index_coco(dataset)
    for ann in kept:
        _complete(ann, coco, path)
    return coco


def truth_from_panoptic(panoptic: PanopticTruth, thing_ids: Collection[int] | None = None) -> COCO:
    """Convert the things of panoptic annotations to instance ground truth; crowd regions stay crowds.

    Args:
        panoptic: annotations.
        thing_ids: categories that are things; those with `isthing` in the annotation file if None.
    """
    things = {
        i: c for i, c in panoptic.categories.items() if c.get("isthing") and (thing_ids is None or i in thing_ids)
    }
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    # Threads, not processes: decoding and comparing release the GIL, and CUDA may already be initialized.
    with ThreadPoolExecutor(_READERS) as pool:
        for image, records in pool.map(functools.partial(_things_of, panoptic, things), panoptic.annotations):
            images.append(image)
            annotations.extend({"id": n, **ann} for n, ann in enumerate(records, start=len(annotations) + 1))
    return index_coco({"images": images, "categories": list(things.values()), "annotations": annotations})


def _things_of(
    panoptic: PanopticTruth, things: Collection[int], annotation: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the COCO image record and the annotations, without `id`, of one image."""
    ids = panoptic.id_map(annotation)
    rles = encode_label_map(ids)
    records = [
        {
            "image_id": annotation["image_id"],
            "category_id": segment["category_id"],
            "iscrowd": int(segment.get("iscrowd", 0)),
            "segmentation": rles[segment["id"]],
            "area": float(mask_util.area(rles[segment["id"]])),
            "bbox": mask_util.toBbox(rles[segment["id"]]).tolist(),
        }
        for segment in annotation["segments_info"]
        if segment["category_id"] in things and segment["id"] in rles
    ]
    return {"id": annotation["image_id"], "height": ids.shape[0], "width": ids.shape[1]}, records


def _complete(ann: dict[str, Any], coco: COCO, path: str | os.PathLike[str]) -> None:
    """Fill in the area and encode the mask as RLE, so that a malformed mask is reported before inference, not after."""
    where = f"{path}: annotation {ann['id']} (counting from 1) of image {ann['image_id']!r}"
    if "segmentation" in ann and ann["image_id"] in coco.imgs:
        image = coco.imgs[ann["image_id"]]
        try:
            if isinstance(ann["segmentation"], dict):
                # pycocotools does not return from some RLEs whose runs do not sum to the image size.
                rle_runs(ann["segmentation"], (image["height"], image["width"]))
            rle = coco.annToRLE(ann)
            area = float(mask_util.area(rle))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{where} has a malformed segmentation: {error!r}") from error
        if list(rle["size"]) != [image["height"], image["width"]]:
            raise ValueError(
                f"{where}: its mask is (h, w) = {list(rle['size'])}, the image is {[image['height'], image['width']]}"
            )
        ann["segmentation"] = rle
        ann.setdefault("area", area)
    elif "bbox" in ann:
        ann.setdefault("area", float(ann["bbox"][2] * ann["bbox"][3]))
    elif "segmentation" not in ann:
        raise ValueError(f"{where} has neither segmentation nor bbox")
