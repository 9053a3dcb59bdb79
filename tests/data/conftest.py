"""A tiny COCO dataset on disk, recreated for each test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.config import CfgNode
from PIL import Image

from mask2former.config import load_config

Dataset = tuple[Path, Path, dict[str, Any]]


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def rle(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


@pytest.fixture
def tiny_content(tmp_path: Path) -> Dataset:
    """Six images 40x32 (width x height): polygons, RLE, crowd, and one without objects."""
    directory = tmp_path / "images"
    directory.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(6):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(directory / name)
        images.append({"id": number + 10, "file_name": name, "height": 32, "width": 40})
        if number == 5:
            continue
        mask = np.zeros((32, 40), bool)
        mask[20:28, 4 : 10 + number] = True
        for category, segmentation, crowd in (
            (7, square(5 + number, 4, 9), 0),
            (3, rle(mask), 0),
            (7, rle(~mask), 1),
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 10,
                    "category_id": category,
                    "iscrowd": crowd,
                    "bbox": [0, 0, 5, 5],
                    "area": 25,
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": 7, "name": "cell"}, {"id": 3, "name": "bar"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return tmp_path / "instances.json", directory, content


@pytest.fixture
def write(tiny_content: Dataset) -> Callable[[], tuple[Path, Path]]:
    """Return a function that writes the (perhaps changed) content and returns JSON file and directory."""

    def save() -> tuple[Path, Path]:
        path, directory, content = tiny_content
        path.write_text(json.dumps(content))
        return path, directory

    return save


@pytest.fixture(autouse=True)
def _forget_names(forget_own_names: None) -> None:
    """Unregister custom datasets after every test of this directory."""


@pytest.fixture
def data_cfg() -> CfgNode:
    """Small LSJ training on two classes, in the main process."""
    options: list[Any] = ["INPUT.IMAGE_SIZE", 48, "INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj"]
    options += ["INPUT.FORMAT", "RGB", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2, "INPUT.MIN_SCALE", 0.5]
    options += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SEED", 3]
    options += ["INPUT.MIN_SIZE_TEST", 32, "INPUT.MAX_SIZE_TEST", 64]
    return load_config(None, options)
