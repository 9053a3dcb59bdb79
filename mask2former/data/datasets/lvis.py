"""LVIS: the names of detectron2, below the same root as the others. Reading them needs the package lvis."""

from __future__ import annotations

import functools
import os

from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_LVIS
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json

from .catalog import Records, require_files, set_dataset

LAYOUT = """\
<root>/
  coco/{train,val,test}2017/      pictures of COCO
  lvis/lvis_v1_{train,val}.json   annotations (also lvis_v0.5_*.json)"""


def register_lvis(root: str) -> None:
    """Register the LVIS names below `root`; no file is touched."""
    for family, splits in _PREDEFINED_SPLITS_LVIS.items():
        for name, (images, file) in splits.items():
            paths = {"json_file": os.path.join(root, file), "image_root": os.path.join(root, images)}
            metadata = {**get_lvis_instances_meta(family), **paths, "evaluator_type": "lvis"}
            set_dataset(name, functools.partial(_load, name, **paths), metadata)


def _load(name: str, json_file: str, image_root: str) -> Records:
    require_files(name, [json_file, image_root], LAYOUT)
    return load_lvis_json(json_file, image_root, name)
