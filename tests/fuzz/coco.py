"""COCO instance annotations: one changed JSON file, read by training, evaluation and check."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from mask2former.structures.masks import segmentation_to_mask
from mask2former.structures.rle import encode_masks

from .datasets import NAME, SIZE, Records, Sample, small_config, use_dataset, with_dataset, write_images
from .judgment import Case, require
from .mutation import mutate, write_json


def prepare(root: Path) -> dict[str, Any]:
    """Write the images; return the annotations and a config."""
    write_images(root / "images", [f"{number}.png" for number in range(3)])
    options = ["INPUT.IMAGE_SIZE", 32, "INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj", "INPUT.MIN_SCALE", 0.9]
    options += ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", True, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False]
    cfg = small_config(None, *options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)
    return {"images": root / "images", "content": content(), "cfg": cfg}


def content() -> dict[str, Any]:
    """Return annotations of three images with two classes: polygons, both forms of RLE, a crowd."""
    height, width = SIZE
    images = [{"id": n + 4, "file_name": f"{n}.png", "height": height, "width": width} for n in range(3)]
    annotations: list[dict[str, Any]] = []
    for number in range(3):
        mask = np.zeros(SIZE, bool)
        mask[14:20, 3 : 10 + number] = True
        runs = {"size": list(SIZE), "counts": _runs(mask)}
        shapes = (square(2 + number, 2, 9), runs, rle(mask[:, ::-1]), rle(~mask), square(20, 3, 5) + square(26, 3, 4))
        for position, shape in enumerate(shapes):
            entry = {"id": len(annotations) + 1, "image_id": number + 4, "category_id": (7, 3)[position % 2]}
            entry.update(iscrowd=int(position == 3), area=30 + position, bbox=[1, 2, 10, 12], segmentation=shape)
            annotations.append(entry)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}],
    }


def square(x: float, y: float, side: float) -> list[list[float]]:
    """Return a polygon."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return a compressed RLE for JSON."""
    code = encode_masks(torch.from_numpy(np.ascontiguousarray(mask))[None])[0]
    counts = code["counts"]
    return {"size": list(SIZE), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [-1]])
    return np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()


# ---- changes of the format's own
def _annotation(random: Random, tree: Any) -> dict[str, Any]:
    entries = tree.get("annotations") if isinstance(tree, dict) else None
    entries = [entry for entry in entries or [{}] if isinstance(entry, dict)] if isinstance(entries, list) else []
    return random.choice(entries or [{}])


def _polygons(random: Random, tree: Any) -> None:
    """Write polygons as people and tools write them."""
    entry = _annotation(random, tree)
    height, width = SIZE
    corners = [[2, 2], [9, 2], [9, 9], [2, 9], [1, 5]][: random.choice((1, 2, 3, 4, 5))]
    flat = [value for corner in corners for value in corner]
    bad = random.choice((None, "3", float("nan"), float("inf"), -1, 3e9, 1e308, -1e12, [1], True))
    choices: tuple[Any, ...] = (
        corners,
        [corners],
        flat,
        [flat[:-1]],
        [[*flat, bad]],
        [[*flat[:2], bad, *flat[3:]]],
        [[value / width for value in flat]],
        [[value + 1000 for value in flat]],
        [[value - height for value in flat]],
        [[5, 5] * 3],
        [[4, 4, 4, 9, 4, 6]],
        [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]],
        [flat, []],
        [[]],
        [flat * 50],
    )
    entry["segmentation"] = random.choice(choices)


def _run_lengths(random: Random, tree: Any) -> None:
    entry = _annotation(random, tree)
    height, width = SIZE
    total = height * width
    big = random.choice((10**6, 2**31, 2**32 + 5, 2**63, 10**36))
    counts = random.choice(
        ([total], [0, total], [total + 1], [5, -5, total], [10, 20], [big, 3], [0] * 50 + [total], [1.5, total - 1.5],
         [True, total - 1], "", "0", "abc", "PPYo0", "~" * 40, "o" * 40, "\x7f" * 8, None, [None], [[total]], {}, 5)
    )  # fmt: skip
    size = random.choice(
        ([height, width],) * 4 + ([width, height], [0, 0], [big, big], [height], "x", None, [24.0, 32.0])
    )
    entry["segmentation"] = {"size": size, "counts": counts}


def _fields(random: Random, tree: Any) -> None:
    entry = _annotation(random, tree)
    key, values = random.choice(
        (
            ("area", (None, float("nan"), -1, 0, "12 px", 1e11, True, [5], float("inf"))),
            ("iscrowd", (None, 2, "0", "1", True, 0.0, 1.0, [0], -1)),
            ("category_id", (None, 0, 99, "7", 7.0, True, [7])),
            ("image_id", (None, 99, "4", 4.0, [4])),
            ("id", (0, None, 1, "1", 1.0, -3, 2**70, [1])),
            ("bbox", (None, [], [1, 2, 3], [1, 2, -3, 4], ["1", 2, 3, 4], [float("nan")] * 4, [0, 0, 0, 0], "x")),
            ("ignore", (0, None, "yes")),  # not 1: training leaves such an object out, pycocotools counts it
        )
    )
    entry[key] = random.choice(values)


def _drop(random: Random, tree: Any) -> None:
    if isinstance(tree, dict):
        kept = random.choice(("annotations", "images", "categories"))
        tree[kept] = random.choice(
            ([], None, {}, (tree.get(kept) or [None])[:1] if isinstance(tree.get(kept), list) else [])
        )


def _image(random: Random, tree: Any) -> None:
    images = tree.get("images") if isinstance(tree, dict) else None
    if isinstance(images, list) and images and isinstance(images[0], dict):
        key = random.choice(("file_name", "height", "width", "id"))
        texts = ("../images/0.png", "nothing.png", ".", "", "a\0.png", "/etc/passwd", "0.png/", "\ud800.png", "x" * 300)
        images[0][key] = (
            random.choice(texts) if key == "file_name" else random.choice((0, -1, 24.0, "24", 10**9, 33, None))
        )


CHANGES = (_polygons, _polygons, _run_lengths, _fields, _drop, _image)


def run(state: dict[str, Any], case: Case) -> None:
    """Change the annotations and use them, with and without skipping."""
    file = case.directory / "instances.json"
    file.write_bytes(write_json(case.random, mutate(case.random, state["content"], CHANGES)))
    case.names = (NAME, "images", *(path.name for path in state["images"].iterdir()))
    for skip in (False, True):
        cfg = with_dataset(state["cfg"], "COCO_JSON", file, state["images"], skip=skip)
        use_dataset(case, cfg, predict=predict, check_results=check_results)


def objects_of(record: dict[str, Any]) -> list[tuple[int, np.ndarray]]:
    """Return class and mask of the objects that a training learns from a record."""
    size = record["height"], record["width"]
    found = [entry for entry in record["annotations"] if not entry["iscrowd"] and entry.get("segmentation")]
    return [(entry["category_id"], segmentation_to_mask(entry["segmentation"], size)) for entry in found]


def predict(record: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """Return the objects of a record as instances."""
    objects = [(label, mask) for label, mask in objects_of(record) if mask.any()]
    size = sample["height"], sample["width"]
    instances = Instances(size)
    instances.pred_masks = torch.from_numpy(np.array([mask for _, mask in objects], bool).reshape(-1, *size))
    instances.scores = torch.ones(len(objects))
    instances.pred_classes = torch.tensor([label for label, _ in objects], dtype=torch.int64)
    return {"instances": instances}


def check_results(results: dict[str, Any], records: Records) -> None:
    """Require the AP of a model that finds everything."""
    objects = [mask for record in records for _, mask in objects_of(record)]
    value = results["segm"]["AP"]
    if not objects:
        require(math.isnan(value) or value == -1, f"AP is {value} without objects")
    elif all(mask.any() for mask in objects):
        require(
            abs(value - 100) < 0.01, f"training and evaluation differ: AP of the objects of the training is {value}"
        )
