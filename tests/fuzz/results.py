"""Result files: changed JSON of instances, semantic maps and videos, scored against ground truth that is intact."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from mask2former.data.datasets import catalog
from mask2former.data.datasets.semantic_folder import register_semantic_folder
from mask2former.data.datasets.ytvis_json import read_ytvis_json
from mask2former.evaluation.boundary import boundary_ap
from mask2former.evaluation.semantic_pq import evaluate_semantic_pq
from mask2former.evaluation.video_ap import evaluate_videos
from mask2former.utils.file_io import read_json

from . import coco, ytvis
from .datasets import NAME, SIZE, write_images
from .judgment import Case, check_finite
from .mutation import mutate, write_json

TASKS = ("boundary", "segm", "bbox")


def prepare(root: Path) -> dict[str, Any]:
    """Write the ground truth; return intact results by their format."""
    truth = coco.content()
    (root / "truth.json").write_text(json.dumps(truth))
    mask = np.zeros(SIZE, bool)
    mask[3:12, 4:20] = True
    instances = [
        {
            "image_id": 4 + n % 3,
            "category_id": (7, 3)[n % 2],
            "score": 0.9 - 0.1 * n,
            "segmentation": coco.rle(mask),
            "bbox": [4.0, 3.0, 16.0, 9.0],
        }
        for n in range(5)
    ]
    write_images(root / "images", ["0.png", "1.png"])
    (root / "labels").mkdir()
    for number in range(2):
        Image.fromarray(mask.astype(np.uint8)).save(root / "labels" / f"{number}.png")
    semantic = [
        {
            "file_name": str(root / "images" / f"{number}.png"),
            "category_id": label,
            "segmentation": coco.rle(mask == bool(label)),
        }
        for number in range(2)
        for label in range(2)
    ]
    catalog.unregister(NAME)
    register_semantic_folder(NAME, root / "images", root / "labels", ["a", "b"])
    videos = ytvis.content()
    (root / "videos.json").write_text(json.dumps(videos))
    clips = [
        {"video_id": 4, "category_id": 7, "score": 0.5, "segmentations": [coco.rle(mask), None, coco.rle(~mask)]},
        {"video_id": 9, "category_id": 3, "score": 0.4, "segmentations": [coco.rle(mask)]},
    ]
    return {
        "root": root,
        "instances": instances,
        "semantic": semantic,
        "videos": clips,
        "truth": read_ytvis_json(str(root / "videos.json")),
    }


def run(state: dict[str, Any], case: Case) -> None:
    """Change the results and score them."""
    random, root = case.random, state["root"]
    kind = random.choice(("instances", "instances", "semantic", "videos"))
    file = case.directory / "results.json"
    file.write_bytes(write_json(random, mutate(random, state[kind], (_run_lengths, _fields))))
    case.names = (NAME, "truth.json", "videos.json")
    if kind == "instances":
        for task in TASKS:
            scores = case.attempt(boundary_ap, root / "truth.json", file, iou_type=task)
            if scores.accepted:
                check_finite({key: scores.value[key] for key in ("AP", "AP50", "AR@100")}, task)
    elif kind == "semantic":
        scores = case.attempt(evaluate_semantic_pq, NAME, file)
        if scores.accepted:
            check_finite({key: scores.value[key] for key in ("PQ", "SQ", "RQ")}, "PQ")
    else:
        read = case.attempt(read_json, file, "results")
        # The evaluator passes what a model made: records that have the form of clips.
        if read.accepted and _are_clips(read.value):
            case.names += tuple(f"{name}.png" for name in range(3))
            case.attempt(evaluate_videos, state["truth"], read.value)


def _are_clips(content: Any) -> bool:
    keys = {"video_id", "category_id", "score", "segmentations"}
    if not isinstance(content, list) or not all(isinstance(entry, dict) and keys <= entry.keys() for entry in content):
        return False
    simple = (entry["video_id"].__hash__ and entry["category_id"].__hash__ for entry in content)
    numbers = (isinstance(entry["score"], float) and isinstance(entry["segmentations"], list) for entry in content)
    return all(simple) and all(numbers)


def _run_lengths(random: Random, tree: Any) -> None:
    """Change an RLE."""
    entry = random.choice(tree) if isinstance(tree, list) and tree else None
    if not isinstance(entry, dict):
        return
    height, width = SIZE
    total = height * width
    counts: tuple[Any, ...] = ([total], [total + 1], [-1, total + 1], [10**36, 3], [2**32 + 5, 1], "", "~" * 30,
    "o" * 30, "0", "a b", None, 5,
                               [0.5], ["1"], [True], "ß", "\0", [[5]], "PPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPP",
                               "1" * 3000)  # fmt: skip
    sizes: tuple[Any, ...] = ([height, width],) * 5 + (
        [width, height],
        [0, 0],
        [-1, 5],
        [10**9, 10**9],
        "x",
        None,
        [height],
        [24.0, 32.0],
        [2**40, 1],
    )
    changed: Any = {"size": random.choice(sizes), "counts": random.choice(counts)}
    changed = random.choice((changed, changed, changed, None, [[1, 1, 9, 1, 9, 9]], {}, "x", []))
    if isinstance(entry.get("segmentations"), list) and entry["segmentations"]:
        entry["segmentations"][0] = changed
    else:
        entry["segmentation"] = changed


def _fields(random: Random, tree: Any) -> None:
    entry = random.choice(tree) if isinstance(tree, list) and tree else None
    if isinstance(entry, dict):
        key, values = random.choice(
            (
                ("score", (None, "0.5", float("nan"), float("inf"), 10**36, -1, True, [0.5])),
                (
                    "bbox",
                    (
                        None,
                        [],
                        [1, 2, 3],
                        [1, 2, -3, 4],
                        ["1", 2, 3, 4],
                        [float("nan")] * 4,
                        [float("inf")] * 4,
                        5,
                        [1e308] * 4,
                    ),
                ),
                ("image_id", (None, 99, "4", 4.0, [4], {"a": 1})),
                ("video_id", (None, 99, "4", 4.0)),
                ("category_id", (None, 99, "7", 7.0, [7], True, -1, 0)),
                ("file_name", (None, "x.png", 5, ["x"])),
            )
        )
        entry[key] = random.choice(values)
