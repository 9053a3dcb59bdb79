"""Semantic datasets: changed label maps, files that are missing or of other names, and lists of class names."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from mask2former.data import register_from_config
from mask2former.data.datasets import unregister
from mask2former.data.image_io import read_label_map
from mask2former.errors import BadRecordError

from .datasets import NAME, SIZE, Records, Sample, small_config, use_dataset, with_dataset, write_images
from .judgment import Case, require
from .mutation import damage_text, mutate_bytes

NAMES = ["road", "sky", "tree"]
COUNT = 3


def prepare(root: Path) -> dict[str, Any]:
    """Write the images; return a config."""
    write_images(root / "images", [f"{number}.png" for number in range(COUNT)])
    options = ["INPUT.DATASET_MAPPER_NAME", "mask_former_semantic", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
    options += ["INPUT.MIN_SIZE_TRAIN", "(24,)", "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", "(20, 20)"]
    options += ["INPUT.CROP.TYPE", "absolute", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True]
    return {"images": root / "images", "cfg": small_config(None, *options)}


def labels_of(number: int) -> np.ndarray:
    """Return the label map (H, W) of an image."""
    labels = np.zeros(SIZE, np.int64)
    labels[8:, :20] = 1 + number % 2
    labels[:3] = 255
    return labels


def _write_labels(random: Random, directory: Path, number: int) -> None:
    """Write a label map, every second time a changed one."""
    labels, file = labels_of(number), directory / f"{number}.png"
    choice = random.randrange(24)
    if choice == 0:
        labels[4, 4:9] = random.choice((3, 7, 254, -1, 256, 300))
    elif choice == 1:
        labels[:] = random.choice((0, 255, 2, 254))
    elif choice == 2:
        labels = labels[: random.choice((1, 9, 23))]
    elif choice == 3:
        labels = labels.T
    elif choice == 4:
        labels = np.where(labels == 255, 65535, labels)
    if choice == 5:
        Image.fromarray(np.stack([labels] * 3, axis=-1).astype(np.uint8)).save(file)
    elif choice == 6:
        Image.fromarray((labels / 255).astype(np.float32)).save(directory / f"{number}.tif")
    elif choice == 7:
        Image.fromarray(labels.astype(np.uint8)).convert(random.choice(("1", "LA", "CMYK"))).save(
            directory / f"{number}.tif"
        )
    elif choice == 8:
        image = Image.fromarray(labels.astype(np.uint8))
        image.save(directory / f"{number}.tif", save_all=True, append_images=[image, image.rotate(180)])
    elif choice == 9:
        Image.fromarray(labels.astype(np.uint8)).save(directory / f"{number}.bmp")
        Image.fromarray(labels.astype(np.uint8)).save(file)
    elif choice == 10:
        Image.fromarray(labels.astype(np.int32)).save(directory / f"{number}.tif")
    elif choice != 11:
        palette = Image.fromarray(labels.astype(np.uint16 if labels.max() > 255 or labels.min() < 0 else np.uint8))
        palette.save(file)
        if choice in (12, 13, 14):
            file.write_bytes(mutate_bytes(random, file.read_bytes()))


def _write_names(random: Random, directory: Path) -> Path:
    """Write the class names; one time in three a changed file."""
    file = directory / random.choice(("names.txt", "names.json"))
    text = json.dumps(NAMES) if file.suffix == ".json" else "\n".join(NAMES)
    data = text.encode()
    choice = random.randrange(18)
    if choice == 0:
        data = damage_text(random, text).encode("utf-8", "surrogatepass")
    elif choice == 1:
        data = b"\xef\xbb\xbf" + data
    elif choice == 2:
        data = text.encode("utf-16")
    elif choice == 3:
        data = mutate_bytes(random, data)
    elif choice == 4:
        data = json.dumps(random.choice(({"a": 1}, [1, 2, 3], [["a"], "b", "c"], None, "road", [None] * 3))).encode()
    elif choice == 5:
        data = b"[" * 100_000
    file.write_bytes(data)
    return file


def run(state: dict[str, Any], case: Case) -> None:
    """Change the files and use them, with and without skipping."""
    random = case.random
    case.names = (NAME,)
    images, labels = case.directory / "images", case.directory / "labels"
    shutil.copytree(state["images"], images)
    labels.mkdir()
    for number in range(COUNT):
        _write_labels(random, labels, number)
    choice = random.randrange(20)
    if choice == 0:
        (images / "0.png").unlink()
    elif choice == 1:
        (images / "0.png").rename(images / "0.JPEG")
    elif choice == 2:
        shutil.copy(images / "0.png", images / "0.bmp")
    elif choice == 3:
        (labels / "loop").symlink_to(labels)
    elif choice == 4:
        (images / "._1.png").write_bytes(b"\0\5\x16\7" * 9)
    elif choice == 5:
        (images / "0.png").write_bytes(mutate_bytes(random, (images / "0.png").read_bytes()))
    elif choice == 6:
        shutil.rmtree(random.choice((images, labels)))
    elif choice == 7:
        (labels / "9.png").mkdir()
    names = _write_names(random, case.directory)
    ignored = random.choice((255,) * 8 + (0, 2, -1, 300))
    for skip in (False, True):
        cfg = with_dataset(state["cfg"], "SEMANTIC_FOLDER", images, labels, names, skip=skip)
        cfg.DATASETS.SEMANTIC_FOLDER[0].append(ignored)
        with contextlib.suppress(Exception):  # the start of a training compares the numbers of classes
            register_from_config(cfg)
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(MetadataCatalog.get(NAME).stuff_classes)
        unregister(NAME)
        use_dataset(case, cfg, predict=predict, check_results=lambda *found: check_results(ignored, *found))


def predict(record: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """Return the labels of a record."""
    labels = np.zeros((sample["height"], sample["width"]), np.int32)
    with contextlib.suppress(BadRecordError):  # a real model reads no ground truth
        found = read_label_map(record["sem_seg_file_name"])
        labels = found if found.shape == labels.shape else labels
    return {"sem_seg": torch.from_numpy(np.where((labels >= 0) & (labels < len(NAMES)), labels, 0))}


def check_results(ignored: int, results: dict[str, Any], records: Records) -> None:
    """Require the IoU of a model that finds everything."""
    maps = [read_label_map(record["sem_seg_file_name"]) for record in records]
    value = results["sem_seg"]["mIoU"]
    if any((labels != ignored).any() for labels in maps):
        require(
            abs(value - 100) < 0.01, f"training and evaluation differ: IoU of the labels of the training is {value}"
        )
    else:
        require(math.isnan(value), f"IoU is {value} without labels")
