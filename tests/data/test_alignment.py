"""Masks stay on their objects through every mapper: the colors of the image say where each object is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.config import CfgNode
from PIL import Image
from scipy import ndimage

from mask2former.data import build_mapper, mapper_names
from mask2former.data.sampler import random_state

COLORS = (60, 120, 180, 240)  # of the objects, on black; further apart than rounding
MARGIN = 4  # pixels of the result that resampling may blur beside an outline


def _scene(seed: int, directory: Path) -> dict[str, Any]:
    """An image of rectangles, one quadrant each, and its record: polygons, RLE, a bitmap, and segment ids."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(60, 140, 2))
    ids = np.zeros((height, width), np.int32)
    annotations: list[dict[str, Any]] = []
    for k in range(len(COLORS)):
        top, left = k // 2 * (height // 2), k % 2 * (width // 2)
        y0, x0 = top + int(rng.integers(0, 8)), left + int(rng.integers(0, 8))
        y1 = int(rng.integers(y0 + 15, top + height // 2 + 1))
        x1 = int(rng.integers(x0 + 15, left + width // 2 + 1))
        ids[y0:y1, x0:x1] = k + 1
        bitmap = ids == k + 1
        rle = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
        forms = [[x0, y0, x1, y0, x1, y1, x0, y1]], rle, bitmap
        annotations.append({"id": k + 1, "category_id": k, "segmentation": forms[k % 3]})
    gray = np.array([0, *COLORS], np.uint8)[ids]
    Image.fromarray(np.repeat(gray[:, :, None], 3, axis=2)).save(directory / f"{seed}.png")
    labels = np.where(ids > 0, ids - 1, 255).astype(np.uint8)
    Image.fromarray(labels).save(directory / f"{seed}_labels.png")
    png = np.stack([ids, np.zeros_like(ids), np.zeros_like(ids)], axis=2).astype(np.uint8)
    Image.fromarray(png).save(directory / f"{seed}_ids.png")
    return {
        "file_name": str(directory / f"{seed}.png"),
        "annotations": annotations,
        "sem_seg_file_name": str(directory / f"{seed}_labels.png"),
        "pan_seg_file_name": str(directory / f"{seed}_ids.png"),
        "segments_info": [{"id": k + 1, "category_id": k, "isthing": True} for k in range(len(COLORS))],
    }


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
@pytest.mark.parametrize("name", mapper_names())
def test_masks_lie_on_their_colors(name: str, flip: str, data_cfg: CfgNode, tmp_path: Path) -> None:
    options: list[Any] = ["INPUT.DATASET_MAPPER_NAME", name, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(COLORS)]
    options += ["INPUT.IMAGE_SIZE", 128, "INPUT.MIN_SCALE", 0.5, "INPUT.MAX_SCALE", 2.0]
    options += ["INPUT.MIN_SIZE_TRAIN", (64, 100, 150), "INPUT.MAX_SIZE_TRAIN", 220]
    options += ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [96, 128]]
    options += ["INPUT.SIZE_DIVISIBILITY", 144, "INPUT.RANDOM_FLIP", flip, "INPUT.RANDOM_ROT90", True]
    data_cfg.merge_from_list(options)
    mapper = build_mapper(data_cfg, True)
    checked = 0
    for seed in range(30):
        with random_state(seed):
            sample = mapper(_scene(seed, tmp_path))
        image, instances = sample["image"][0].numpy().astype(int), sample["instances"]
        assert instances.gt_masks.shape[1:] == image.shape
        assert int(instances.gt_masks.sum(0).max()) <= 1, "objects overlap"
        found = dict(zip(instances.gt_classes.tolist(), instances.gt_masks.numpy(), strict=True))
        for k, color in enumerate(COLORS):
            mask = found.get(k, np.zeros(image.shape, bool))
            other = int((abs(image[_inside(mask)] - color) > 1).sum())
            assert other == 0, f"seed {seed}: object {k} covers {other} pixels of another color"
            outside = int((~mask[_inside(abs(image - color) <= 1)]).sum())
            assert outside == 0, f"seed {seed}: {outside} pixels of object {k} lie outside its mask"
            checked += int(_inside(mask).sum())
    assert checked > 10_000


def _inside(area: np.ndarray) -> np.ndarray:
    return ndimage.binary_erosion(area, np.ones((3, 3), bool), MARGIN)
