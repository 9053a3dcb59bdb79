"""COCO-Stuff 10k: semantic labels of 80 things and 91 stuff classes."""

from __future__ import annotations

import functools
import os

from .catalog import set_dataset
from .class_table import class_table, column, index_by_id
from .semantic import load_semantic

LAYOUT = """\
<root>/coco/coco_stuff_10k/
  images/, annotations/, imageLists/          COCO-Stuff 10k as it is downloaded
  images_detectron2/{train,test}/             pictures, made by datasets/prepare_coco_stuff_10k.py
  annotations_detectron2/{train,test}/        label PNG files, made by the same script"""


def register_coco_stuff(root: str) -> None:
    """Register coco_2017_{train,test}_stuff_10k_sem_seg below `root`; no file is touched."""
    folder = os.path.join(root, "coco", "coco_stuff_10k")
    classes = class_table("coco_stuff_10k")
    for split in ("train", "test"):
        name = f"coco_2017_{split}_stuff_10k_sem_seg"
        paths = {
            "image_root": os.path.join(folder, "images_detectron2", split),
            "sem_seg_root": os.path.join(folder, "annotations_detectron2", split),
        }
        metadata = {
            "stuff_classes": column(classes, "name"),
            "stuff_dataset_id_to_contiguous_id": index_by_id(classes),
            **paths,
            "evaluator_type": "sem_seg",
            "ignore_label": 255,
        }
        set_dataset(name, functools.partial(load_semantic, name, **paths, layout=LAYOUT), metadata)
