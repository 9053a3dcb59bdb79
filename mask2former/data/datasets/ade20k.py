"""ADE20K: 150 classes semantic and panoptic, 100 classes instances, and the full set of 847 classes."""

from __future__ import annotations

import functools
import os
from typing import Any

from .catalog import set_dataset
from .categories import class_table, column, instance_metadata, panoptic_classes, panoptic_metadata
from .coco_json import load_instances
from .coco_panoptic import PanopticLayout, load_panoptic, text_id
from .semantic_folder import load_semantic

_SPLITS = {"train": "training", "val": "validation"}

LAYOUT = """\
<root>/ADEChallengeData2016/
  images/{training,validation}/                   images, ADE_val_00000001.jpg
  annotations/{training,validation}/              label PNG files of SceneParse150
  annotations_instance/{training,validation}/     PNG files of the instance challenge
  annotations_detectron2/{training,validation}/   written by datasets/prepare_ade20k_sem_seg.py
  ade20k_panoptic_{train,val}.json, ade20k_panoptic_{train,val}/   written by datasets/prepare_ade20k_pan_seg.py
  ade20k_instance_{train,val}.json                written by datasets/prepare_ade20k_ins_seg.py"""

FULL_LAYOUT = """\
<root>/ADE20K_2021_17_01/
  images/ADE/{training,validation}/                   the full ADE20K as downloaded
  index_ade20k.pkl
  images_detectron2/{training,validation}/            images, written by datasets/prepare_ade20k_full_sem_seg.py
  annotations_detectron2/{training,validation}/       16-bit TIFF label maps, written by the same script"""

FULL_VOID = 65535  # "no class" in the label maps of the full set, which need 16 bits


def register_ade20k(root: str) -> None:
    """Register all ADE20K names below `root` without reading any file."""
    for split, directory in _SPLITS.items():
        _register_semantic(os.path.join(root, "ADEChallengeData2016"), split, directory)
        _register_panoptic(os.path.join(root, "ADEChallengeData2016"), split, directory)
        _register_instances(os.path.join(root, "ADEChallengeData2016"), split, directory)
        _register_full(os.path.join(root, "ADE20K_2021_17_01"), split, directory)


def _register_semantic(root: str, split: str, directory: str) -> None:
    name, paths = f"ade20k_sem_seg_{split}", _semantic_paths(root, directory)
    metadata = {
        "stuff_classes": column(class_table("ade20k"), "name"),
        "stuff_colors": column(class_table("ade20k"), "color"),
        **paths,
        "evaluator_type": "sem_seg",
        "ignore_label": 255,
    }
    set_dataset(name, functools.partial(load_semantic, name, **paths, layout=LAYOUT), metadata)


def _semantic_paths(root: str, directory: str) -> dict[str, str]:
    return {
        "image_root": os.path.join(root, "images", directory),
        "sem_seg_root": os.path.join(root, "annotations_detectron2", directory),
    }


def _register_panoptic(root: str, split: str, directory: str) -> None:
    name, images = f"ade20k_panoptic_{split}", _semantic_paths(root, directory)
    paths: dict[str, Any] = {
        "image_root": images["image_root"],
        "panoptic_root": os.path.join(root, f"ade20k_panoptic_{split}"),
        "panoptic_json": os.path.join(root, f"ade20k_panoptic_{split}.json"),
    }
    layout = PanopticLayout(panoptic_classes(class_table("ade20k")), LAYOUT, image_id=text_id)
    load = functools.partial(load_panoptic, name, layout, **paths, sem_seg_root=images["sem_seg_root"])
    metadata = {
        **panoptic_metadata(class_table("ade20k"), only_things_among_things=True),
        **paths,
        "json_file": os.path.join(root, f"ade20k_instance_{split}.json"),
        "evaluator_type": "ade20k_panoptic_seg",
    }
    set_dataset(name, load, metadata)


def _register_instances(root: str, split: str, directory: str) -> None:
    name = f"ade20k_instance_{split}"
    paths = {
        "json_file": os.path.join(root, f"ade20k_instance_{split}.json"),
        "image_root": os.path.join(root, "images", directory),
    }
    metadata: dict[str, Any] = {**instance_metadata(class_table("ade20k_instance")), **paths, "evaluator_type": "coco"}
    set_dataset(name, functools.partial(load_instances, name, LAYOUT, **paths), metadata)


def _register_full(root: str, split: str, directory: str) -> None:
    name = f"ade20k_full_sem_seg_{split}"
    paths = {
        "image_root": os.path.join(root, "images_detectron2", directory),
        "sem_seg_root": os.path.join(root, "annotations_detectron2", directory),
    }
    metadata = {
        "stuff_classes": column(class_table("ade20k_full"), "name"),
        **paths,
        "evaluator_type": "sem_seg",
        "ignore_label": FULL_VOID,
    }
    set_dataset(name, functools.partial(load_semantic, name, **paths, layout=FULL_LAYOUT), metadata)
