"""Datasets by name. To add one: a module with `register_NAME(root)`, a JSON file of its classes, and a line here."""

from __future__ import annotations

import os

from ...video_registration import OVIS, VIDEO, YTVIS_BY_FRAME
from .ade20k import register_ade20k
from .catalog import dataset_root, set_dataset_root, unregister
from .cityscapes import register_cityscapes
from .coco import register_coco, register_coco_stuff, register_lvis
from .coco_json import load_coco_json, register_coco_json
from .coco_panoptic import register_panoptic
from .from_config import register_from_config
from .mapillary import register_mapillary, register_mapillary_v2
from .semantic_folder import register_semantic_folder
from .shapes import register_shapes
from .ytvis import register_ovis, register_ytvis
from .ytvis_json import register_ytvis_json

_FAMILIES = (
    register_coco,
    register_coco_stuff,
    register_ade20k,
    register_cityscapes,
    register_mapillary,
    register_mapillary_v2,
    register_lvis,
    register_shapes,
)

__all__ = [
    "dataset_root",
    "load_coco_json",
    "register_all",
    "register_coco_json",
    "register_from_config",
    "register_images",
    "register_panoptic",
    "register_semantic_folder",
    "register_ytvis_json",
    "unregister",
]


VIDEO.add(lambda: register_ytvis(dataset_root()))
OVIS.add(lambda: register_ovis(dataset_root()))


def register_images(root: str | os.PathLike[str] | None = None) -> None:
    """Register the names of all datasets of images, and again those of videos that are registered."""
    directory = set_dataset_root(root)
    for register in _FAMILIES:
        register(directory)
    for waiting in (VIDEO, OVIS, YTVIS_BY_FRAME):
        waiting.repeat()


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Register the names of all datasets without reading any file; names that other code registered stay its own.

    May be called repeatedly; with another root the names refer to files there afterwards. The import registers the
    datasets of images, a config the videos that it names.

    Args:
        root: directory that holds coco/ and the others; None takes DETECTRON2_DATASETS, else ./datasets.
    """
    register_images(root)
    VIDEO.activate()
    OVIS.activate()
