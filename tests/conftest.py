"""Fixtures that all tests share."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.config import CfgNode
from hypothesis import HealthCheck, settings
from PIL import Image

from mask2former.config import load_config

from .panoptic_sample import PanopticSample, write_panoptic_sample

# No test depends on the speed of the machine, or on what else runs there.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# pytest adds handlers to loggers that do not propagate, and for a handler of this one PyTorch writes down every graph
# that it compiles or exports, which takes a third of the time.
logging.getLogger("torch.__trace").propagate = True


@pytest.fixture
def panoptic_sample(tmp_path: Path) -> PanopticSample:
    """Create two images in the COCO panoptic format below tmp_path/sample."""
    return write_panoptic_sample(tmp_path / "sample")


@pytest.fixture
def forget_own_names() -> Iterator[None]:
    """Remove the datasets that a test registered."""
    from mask2former.data.datasets import catalog

    before = set(catalog._registered)
    yield
    for name in set(catalog._registered) - before:
        catalog.unregister(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on machines without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Seed every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# Three small videos in the format of YouTube-VIS, recreated for each test.
Content = dict[str, Any]
SIZE = (32, 40)  # height and width


def rle(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def _polygon(mask: np.ndarray) -> list[list[int]]:
    rows, columns = mask.nonzero()
    left, top, right, bottom = (int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return [[left, top, right, top, right, bottom, left, bottom]]


def _runs(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [-1]])
    return {"size": list(SIZE), "counts": np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()}


@pytest.fixture
def video_masks() -> dict[int, list[np.ndarray | None]]:
    """Return annotation id -> mask of each frame. Objects have gray value 100 + 20 x id, frames 10 x their number."""
    return {
        1: [box(4 + t, 3, 14 + t, 12) if t < 4 else None for t in range(6)],  # video 4
        2: [box(20, 16, 30 + t, 27) if t >= 2 else None for t in range(6)],  # video 4
        3: [box(6, 6, 26, 24)],  # video 9, of one frame
        4: [None, box(10, 10, 20, 20), None],  # video 2
        5: [box(0, 0, 4, 4)] * 3,  # video 2, crowd
    }


@pytest.fixture
def video_content(tmp_path: Path, video_masks: dict[int, list[np.ndarray | None]]) -> Content:
    """Return an annotation file's content; write frames to tmp_path/frames. Videos 2, 4 and 9 have 3, 6, 1 frames."""
    owners = {1: (4, 7), 2: (4, 3), 3: (9, 3), 4: (2, 7), 5: (2, 7)}  # video, category
    codes = {1: _polygon, 2: rle, 3: rle, 4: _runs, 5: rle}
    videos = []
    for number, length in ((9, 1), (4, 6), (2, 3)):
        names = [f"clip{number}/{t:05d}.png" for t in range(length)]
        (tmp_path / "frames" / f"clip{number}").mkdir(parents=True)
        for t, name in enumerate(names):
            image = np.full((*SIZE, 3), 10 * t, np.uint8)
            for key, masks in video_masks.items():
                mask = masks[t] if owners[key][0] == number else None
                if mask is not None:
                    image[mask] = 100 + 20 * key
            Image.fromarray(image).save(tmp_path / "frames" / name)
        videos.append({"id": number, "height": SIZE[0], "width": SIZE[1], "length": length, "file_names": names})
    annotations = [
        {
            "id": key,
            "video_id": owners[key][0],
            "category_id": owners[key][1],
            "iscrowd": int(key == 5),
            "segmentations": [None if mask is None else codes[key](mask) for mask in masks],
        }
        for key, masks in video_masks.items()
    ]
    categories = [{"id": 7, "name": "cell"}, {"id": 3, "name": "bar"}]
    return {"videos": videos, "annotations": annotations, "categories": categories}


@pytest.fixture
def write_videos(tmp_path: Path, video_content: Content) -> Callable[[], tuple[str, str]]:
    """Write the (perhaps changed) content; return annotation file and frame directory."""

    def save() -> tuple[str, str]:
        path = tmp_path / "videos.json"
        path.write_text(json.dumps(video_content))
        return str(path), str(tmp_path / "frames")

    return save


@pytest.fixture
def video_cfg() -> CfgNode:
    """Clips of two frames for two classes, in the main process."""
    options: list[Any] = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu", "SEED", 3]
    options += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.AMP.ENABLED", False]
    options += ["INPUT.MIN_SIZE_TRAIN", "(24, 32, 48)", "INPUT.MIN_SIZE_TEST", 32, "INPUT.MAX_SIZE_TEST", 64]
    return load_config("youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml", options)
