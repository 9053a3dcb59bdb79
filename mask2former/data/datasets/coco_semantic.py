"""Semantic label maps from COCO panoptic annotations."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import BadRecordError
from ..images import read_panoptic_png
from .catalog import require_files
from .coco import LAYOUT, coco_categories
from .json_file import read_json_object

VOID = 255


def semantic_map(ids: np.ndarray, segments: list[dict[str, Any]], classes: dict[int, int]) -> np.ndarray:
    """Replace segment ids by classes.

    Args:
        ids: int (H, W).
        segments: with "id" and "category_id".
        classes: class index of each category id.

    Returns:
        uint8 (H, W), 255 where no segment is.

    Raises:
        KeyError: a segment's category is unknown, or it lacks a key.
    """
    table = {segment["id"]: classes[segment["category_id"]] for segment in segments}
    present, labels = np.unique(ids, return_inverse=True)
    values = np.array([table.get(int(segment), VOID) for segment in present], dtype=np.uint8)
    return values[labels.reshape(ids.shape)]


def write_semantic_maps(root: str, split: str, workers: int = 1) -> int:
    """Make coco/panoptic_semseg_{split}2017 from the panoptic annotations; files that exist are kept.

    Args:
        root: folder that holds coco/.
        split: "train" or "val".
        workers: processes.

    Returns:
        How many files were written.

    Raises:
        FileNotFoundError: annotations are missing; shows the expected folders.
        BadRecordError: an annotation or PNG is malformed.
    """
    folder = os.path.join(root, "coco")
    json_file = os.path.join(folder, "annotations", f"panoptic_{split}2017.json")
    source = os.path.join(folder, f"panoptic_{split}2017")
    require_files(f"COCO panoptic {split}2017", [json_file, source], LAYOUT)
    target = os.path.join(folder, f"panoptic_semseg_{split}2017")
    os.makedirs(target, exist_ok=True)
    annotations = read_json_object(json_file, lists=("annotations",))["annotations"]
    present = set(os.listdir(target))
    missing = [annotation for annotation in annotations if annotation["file_name"] not in present]
    convert = partial(_convert, json_file, source, target)
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        results = pool.map(convert, missing, chunksize=32) if pool else map(convert, missing)
        for _ in tqdm(results, total=len(missing), desc=target):
            pass
    return len(missing)


def _convert(json_file: str, source: str, target: str, annotation: dict[str, Any]) -> None:
    name = annotation["file_name"]
    classes = {entry["id"]: index for index, entry in enumerate(coco_categories())}
    try:
        labels = semantic_map(
            read_panoptic_png(os.path.join(source, name)), annotation["segments_info"], classes
        )
    except KeyError as error:
        raise BadRecordError(json_file, f"{error.args[0]!r} is missing or undeclared", name) from error
    # Written beside and renamed, so that an interrupted run leaves no half file behind.
    path = os.path.join(target, name)
    Image.fromarray(labels).save(f"{path}.part", format="png")
    os.replace(f"{path}.part", path)
