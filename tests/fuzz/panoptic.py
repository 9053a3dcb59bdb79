"""COCO panoptic annotations: a changed JSON file and PNG files with segment ids."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image

from mask2former.data.image_io import read_panoptic_png
from mask2former.errors import BadRecordError

from .datasets import NAME, SIZE, Records, Sample, small_config, use_dataset, with_dataset, write_images
from .judgment import Case, require
from .mutation import mutate, mutate_bytes, write_json

COUNT = 3


def prepare(root: Path) -> dict[str, Any]:
    """Write the images; return annotations, id maps and a config."""
    write_images(root / "images", [f"{number}.jpg" for number in range(COUNT)])
    options = ["INPUT.IMAGE_SIZE", 32, "INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj", "INPUT.MIN_SCALE", 0.9]
    for task in ("INSTANCE_ON", "SEMANTIC_ON", "PANOPTIC_ON"):
        options += [f"MODEL.MASK_FORMER.TEST.{task}", True]
    cfg = small_config(None, *options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4)
    content, maps = annotations()
    return {"images": root / "images", "content": content, "maps": maps, "cfg": cfg}


def annotations() -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the content of the JSON file, and the ids (H, W) of each image."""
    height, width = SIZE
    categories = [{"id": 10 * n + 7, "name": f"c{n}", "isthing": int(n < 2)} for n in range(4)]
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    maps = []
    for number in range(COUNT):
        ids = np.zeros(SIZE, np.int64)
        parts = {
            300: (0, 0, 10, 16),
            7: (0, 16, 12, 32),
            70000: (10, 0, 24, 12),
            16777215: (12, 14, 24, 24),
            9: (14, 26, 20, 30),
        }
        segments = []
        for position, (segment, (top, left, bottom, right)) in enumerate(parts.items()):
            ids[top:bottom, left:right] = segment
            entry = {"id": segment, "category_id": 10 * (position % 4) + 7, "iscrowd": int(segment == 9)}
            segments.append(
                {**entry, "area": (bottom - top) * (right - left), "bbox": [left, top, right - left, bottom - top]}
            )
        content["images"].append({"id": number + 1, "file_name": f"{number}.jpg", "height": height, "width": width})
        content["annotations"].append({"image_id": number + 1, "file_name": f"{number}.png", "segments_info": segments})
        maps.append(ids)
    return content, maps


def write_ids(file: Path, ids: np.ndarray) -> None:
    """Write segment ids as colors."""
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)).save(file)


def _segments(random: Random, tree: Any) -> list[Any]:
    entries = tree.get("annotations") if isinstance(tree, dict) else None
    entry = random.choice(entries) if isinstance(entries, list) and entries else None
    segments = entry.get("segments_info") if isinstance(entry, dict) else None
    return segments if isinstance(segments, list) else []


def _segment(random: Random, tree: Any) -> None:
    segments = _segments(random, tree)
    if not segments:
        return
    key, values = random.choice(
        (
            ("id", (0, -1, "7", None, 7, 2**24, 2**40, 7.0, True, [7])),
            ("category_id", (7, 17, 99, "7", None, [7], True, 7.0)),
            ("iscrowd", (1, 2, None, "1", [1], True, 0.5)),
            ("area", (-1, None, "x", float("nan"))),  # not 0: the official script computes the IoU with it
            ("isthing", (0, 1, None, "x")),
        )
    )
    chosen = random.choice(segments)
    if isinstance(chosen, dict):
        chosen[key] = random.choice(values)


def _lists(random: Random, tree: Any) -> None:
    segments = _segments(random, tree)
    if segments and random.random() < 0.5:
        segments.append(random.choice((segments[0], None, 5, {}, [], {"id": 5, "category_id": 7})))
    elif segments:
        segments.pop(random.randrange(len(segments)))


def _category(random: Random, tree: Any) -> None:
    categories = tree.get("categories") if isinstance(tree, dict) else None
    if isinstance(categories, list) and categories and all(isinstance(category, dict) for category in categories):
        key = random.choice(("color", "isthing", "id", "name"))
        values = {
            "color": (5, [1, 2], ["a", 1, 2], [300, -1, 2], {"r": 1}, [1.5, 2, 3], True, [float("nan")] * 3),
            "isthing": (None, 2, "1", True, 0, 1),
            "id": (0, -1, 17, "7", None, 2**70),
            "name": ("", None, "c1", 5, ["a"]),
        }
        random.choice(categories)[key] = random.choice(values[key])


def _write_png(random: Random, file: Path, ids: np.ndarray) -> None:
    """Write a PNG, one time in four a damaged one."""
    if random.random() < 0.75:
        write_ids(file, ids)
        return
    choice = random.randrange(7)
    if choice == 0:
        write_ids(file, ids[: random.choice((1, 10, 23))])
    elif choice == 1:
        Image.fromarray((ids & 255).astype(np.uint8)).save(file)
    elif choice == 2:
        write_ids(file, np.where(ids == 7, random.choice((0, 5, 300, 2**24 - 1)), ids))
    elif choice == 3:
        write_ids(file, ids)
        file.write_bytes(mutate_bytes(random, file.read_bytes()))
    elif choice == 4:
        write_ids(file, random.choice((np.zeros_like(ids), np.full_like(ids, 2**24 - 1))))
    elif choice == 5:
        Image.new("RGBA", SIZE[::-1], (44, 1, 0, 0)).save(file)


def run(state: dict[str, Any], case: Case) -> None:
    """Change annotations and PNG files and use them, with and without skipping."""
    random = case.random
    file, directory = case.directory / "panoptic.json", case.directory / "segments"
    directory.mkdir()
    for number, ids in enumerate(state["maps"]):
        _write_png(random, directory / f"{number}.png", ids)
    content = (
        mutate(random, state["content"], (_segment, _segment, _lists, _category))
        if random.random() < 0.8
        else state["content"]
    )
    file.write_bytes(write_json(random, content))
    case.names = (NAME, "images", *(f"{number}.{end}" for number in range(COUNT) for end in ("jpg", "png")))
    for skip in (False, True):
        cfg = with_dataset(state["cfg"], "COCO_PANOPTIC", file, state["images"], directory, skip=skip)
        use_dataset(case, cfg, predict=predict, check_results=check_results)


def predict(record: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """Return the segments of a record, as all three tasks show them."""
    size = sample["height"], sample["width"]
    ids = np.zeros(size, np.int32)
    with contextlib.suppress(BadRecordError):  # a real model reads no ground truth
        found = read_panoptic_png(record["pan_seg_file_name"])
        ids = found if found.shape == size else ids
    segments = [entry for entry in record["segments_info"] if not entry["iscrowd"]]
    shown = np.zeros_like(ids)
    labels = np.zeros(size, np.int64)
    info, things = [], []
    for number, entry in enumerate(segments, start=1):
        mask = (ids == entry["id"]) & (shown == 0)  # an id may be listed twice
        if mask.any():
            shown[mask] = number
            labels[mask] = entry["category_id"]
            info.append({"id": number, "category_id": entry["category_id"], "isthing": entry["isthing"], "score": 1.0})
            if entry["isthing"]:
                things.append((entry["category_id"], mask))
    instances = Instances(size)
    instances.pred_masks = torch.from_numpy(np.array([mask for _, mask in things], bool).reshape(-1, *size))
    instances.scores = torch.ones(len(things))
    instances.pred_classes = torch.tensor([label for label, _ in things], dtype=torch.int64)
    panoptic = torch.from_numpy(shown.astype(np.int32)), info
    return {"instances": instances, "panoptic_seg": panoptic, "sem_seg": torch.from_numpy(labels)}


def check_results(results: dict[str, Any], records: Records) -> None:
    """Require the scores of a model that finds everything."""
    things, complete = 0, True
    for record in records:
        ids = set(np.unique(read_panoptic_png(record["pan_seg_file_name"])).tolist())
        segments = [entry for entry in record["segments_info"] if not entry["iscrowd"]]
        # The official script counts segments without pixels as missed.
        complete = complete and len(ids.intersection(entry["id"] for entry in segments)) == len(segments)
        things += sum(bool(entry["isthing"]) for entry in segments if entry["id"] in ids)
    quality, ap = results["panoptic_seg"]["PQ"], results["segm"]["AP"]
    if things and complete:
        require(
            abs(quality - 100) < 0.01,
            f"training and evaluation differ: PQ of the segments of the training is {quality}",
        )
    if things:
        require(abs(ap - 100) < 0.01, f"training and evaluation differ: AP of the things of the training is {ap}")
    else:
        require(math.isnan(ap) or ap == -1, f"AP is {ap} without things")
