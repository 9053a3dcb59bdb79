"""YouTube-VIS annotations: one changed JSON file of two videos."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from mask2former.structures.masks import segmentation_to_mask

from .coco import rle, square
from .datasets import NAME, SIZE, Records, Sample, small_config, use_dataset, with_dataset, write_images
from .judgment import Case, require
from .mutation import mutate, nasty, write_json


def prepare(root: Path) -> dict[str, Any]:
    """Write the frames; return the annotations and a config."""
    tree = content()
    write_images(root / "frames", [name for video in tree["videos"] for name in video["file_names"]])
    options = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2, "INPUT.MIN_SIZE_TRAIN", "(24, 28)", "SOLVER.AMP.ENABLED", False]
    cfg = small_config("youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml", *options)
    return {"frames": root / "frames", "content": tree, "cfg": cfg}


def content() -> dict[str, Any]:
    """Return annotations of two videos: polygons, RLE, a crowd, objects that come and go."""
    height, width = SIZE
    lengths = {4: 3, 9: 1}
    videos = [
        {"id": key, "height": height, "width": width, "length": n, "file_names": [f"v{key}/{t}.png" for t in range(n)]}
        for key, n in lengths.items()
    ]
    mask = np.zeros(SIZE, bool)
    mask[14:20, 3:12] = True
    shapes: list[tuple[int, int, int, list[Any]]] = [
        (4, 7, 0, [square(2 + t, 2, 9) for t in range(3)]),
        (4, 3, 0, [None, rle(mask), rle(mask[:, ::-1])]),
        (4, 7, 1, [rle(~mask)] * 3),
        (9, 3, 0, [square(5, 5, 8)]),
    ]
    annotations = []
    for number, (video, category, crowd, segmentations) in enumerate(shapes, start=1):
        areas = [None if one is None else 60 for one in segmentations]
        entry = {"id": number, "video_id": video, "category_id": category, "iscrowd": crowd, "areas": areas}
        annotations.append({**entry, "segmentations": segmentations, "bboxes": [None] * len(areas)})
    categories = [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}]
    return {"videos": videos, "annotations": annotations, "categories": categories}


def _entry(random: Random, tree: Any, key: str) -> dict[str, Any]:
    entries = tree.get(key) if isinstance(tree, dict) else None
    entry = random.choice(entries) if isinstance(entries, list) and entries else None
    return entry if isinstance(entry, dict) else {}


def _shape(random: Random, tree: Any) -> None:
    """Change the segmentation of a frame."""
    frames = _entry(random, tree, "annotations").get("segmentations")
    if not isinstance(frames, list) or not frames:
        return
    flat = square(2, 2, 8)[0]
    total = SIZE[0] * SIZE[1]
    choices: tuple[Any, ...] = (
        None, [], {}, [[]], flat, [flat[:-1]], [flat[:4]], [[value / 32 for value in flat]], [[v + 500 for v in flat]],
        [[*flat[:3], None, *flat[4:]]], [[*flat[:3], 3e9, *flat[4:]]], [[float("nan")] * 8], [[2, 2], [8, 2], [8, 8],
        [2, 8]],
        {"size": list(SIZE), "counts": [total]}, {"size": list(SIZE), "counts": [0, total + 1]}, {"size": [32, 24],
        "counts": [total]},
        {"size": list(SIZE), "counts": [10**36, 5]}, {"size": list(SIZE), "counts": "~~~~~~~"}, {"counts": [total]},
        "x", 5,
    )  # fmt: skip
    frames[random.randrange(len(frames))] = random.choice(choices)


def _lists(random: Random, tree: Any) -> None:
    entry = _entry(random, tree, random.choice(("annotations", "videos")))
    lists = [value for value in entry.values() if isinstance(value, list) and value]
    if lists:
        values = random.choice(lists)
        random.choice((values.pop, lambda: values.append(values[0]), lambda: values.append(nasty(random))))()


def _fields(random: Random, tree: Any) -> None:
    key, values = random.choice(
        (
            ("areas", (None, [None] * 3, [float("nan")] * 3, [-1, 5, 5], "x", [0, 0, 0], ["5"] * 3, [1e11] * 3)),
            ("iscrowd", (None, 2, "1", True, [0])),
            ("category_id", (None, 99, "7", 7.0)),
            ("video_id", (None, 9, "4", 99)),
            ("length", (None, 1, 3.0, "3", 99)),
            ("height", (0, -1, 24.0, 10**9, None, 25)),
            ("id", (None, 0, 1, 4, "4", [4])),
            (
                "file_names",
                ([], None, ["v4/0.png"], ["nothing.png"] * 3, ["../frames/v4/0.png"] * 3, [5] * 3, ["a\0"] * 3),
            ),
        )
    )
    _entry(random, tree, random.choice(("annotations", "videos")))[key] = random.choice(values)


def _drop(random: Random, tree: Any) -> None:
    if isinstance(tree, dict):
        tree[random.choice(("annotations", "videos", "categories"))] = random.choice(([], None, {}))


def run(state: dict[str, Any], case: Case) -> None:
    """Change the annotations and use them, with and without skipping."""
    file = case.directory / "videos.json"
    changes = (_shape, _shape, _lists, _fields, _drop)
    file.write_bytes(write_json(case.random, mutate(case.random, state["content"], changes)))
    case.names = (NAME, "frames", "0.png", "1.png", "2.png", "v4", "v9")
    for skip in (False, True):
        cfg = with_dataset(state["cfg"], "YTVIS_JSON", file, state["frames"], skip=skip)
        use_dataset(case, cfg, predict=predict, check_results=check_results)


def _tracks(record: dict[str, Any]) -> list[tuple[int, np.ndarray]]:
    """Return class and masks (T, H, W) of the objects that a training learns from a record."""
    size = record["height"], record["width"]
    tracks = []
    for entry in record.get("annotations", ()):
        if not entry["iscrowd"]:
            frames = [
                segmentation_to_mask(one, size) if one else np.zeros(size, bool) for one in entry["segmentations"]
            ]
            tracks.append((entry["category_id"], np.array(frames)))
    return tracks


def predict(record: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """Return the objects of a record as the result of a clip."""
    tracks = [(label, masks) for label, masks in _tracks(record) if masks.any()]
    return {
        "image_size": (record["height"], record["width"]),
        "pred_scores": [1.0] * len(tracks),
        "pred_labels": [label for label, _ in tracks],
        "pred_masks": [torch.from_numpy(masks) for _, masks in tracks],
    }


def check_results(results: dict[str, Any], records: Records) -> None:
    """Require the AP of a model that finds everything."""
    tracks = [masks for record in records for _, masks in _tracks(record)]
    value = results.get("segm", {}).get("AP", math.nan)
    if not tracks:
        require(math.isnan(value), f"AP is {value} without objects")
    elif all(masks.any() for masks in tracks):
        require(
            abs(value - 100) < 0.01, f"training and evaluation differ: AP of the objects of the training is {value}"
        )
