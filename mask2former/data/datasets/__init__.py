"""Datasets by name. New ones: a module with `register_NAME(root)`, its classes as json, and a line here."""

from __future__ import annotations

import os

from .catalog import dataset_root, set_dataset_root
from .coco import register_coco
from .coco_json import load_coco_json, register_coco_json, register_from_config, unregister

_FAMILIES = (register_coco,)

__all__ = [
    "dataset_root",
    "load_coco_json",
    "register_all",
    "register_coco_json",
    "register_from_config",
    "unregister",
]


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Register the names of all datasets; no file is touched.

    May be called any number of times; with another root the names point there afterwards.

    Args:
        root: folder that holds coco/ and the others; None takes DETECTRON2_DATASETS, else ./datasets.
    """
    folder = set_dataset_root(root)
    for register in _FAMILIES:
        register(folder)
