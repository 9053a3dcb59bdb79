"""Mapillary Vistas v1.2 (65 classes): semantic, panoptic, and instances of its 37 thing classes."""

from __future__ import annotations

import functools
import os
from typing import Any

from .catalog import set_dataset
from .class_table import (
    class_table,
    column,
    instance_metadata,
    panoptic_classes,
    panoptic_metadata,
    things,
)
from .instances import load_instances
from .panoptic import PanopticLayout, load_panoptic, text_id
from .semantic import load_semantic

SPLITS = {"train": "training", "val": "validation"}
VOID = 65  # "Unlabeled" in the label maps

LAYOUT = """\
<root>/mapillary_vistas/
  {training,validation}/
    images/      pictures, *.jpg
    labels/      label PNG files of v1.2 (in the archive of v2.0: v1.2/labels)
    panoptic/    PNG files with segment ids, and panoptic_2018.json (in the archive of v2.0: v1.2/panoptic)
  mapillary_vistas_instance_{train,val}.json   made by datasets/prepare_mapillary.py, which also links v1.2/"""


def register_mapillary(root: str) -> None:
    """Register the names of Mapillary Vistas v1.2 below `root`/mapillary_vistas; no file is touched."""
    classes = class_table("mapillary_vistas")
    for split in SPLITS:
        semantic, panoptic = _semantic_paths(root, split), _panoptic_paths(root, split)
        name = f"mapillary_vistas_sem_seg_{split}"
        metadata = {
            "stuff_classes": column(classes, "name"),
            "stuff_colors": column(classes, "color"),
            **semantic,
            "evaluator_type": "sem_seg",
            "ignore_label": VOID,
        }
        set_dataset(name, functools.partial(load_semantic, name, **semantic, layout=LAYOUT), metadata)

        name = f"mapillary_vistas_panoptic_{split}"
        layout = PanopticLayout(panoptic_classes(classes), LAYOUT, image_id=text_id)
        load = functools.partial(load_panoptic, name, layout, **panoptic, sem_seg_root=semantic["sem_seg_root"])
        metadata = {
            **panoptic_metadata(classes, ignore_label=VOID),
            **panoptic,
            "json_file": None,
            "evaluator_type": "mapillary_vistas_panoptic_seg",
        }
        set_dataset(name, load, metadata)

        name = f"mapillary_vistas_instance_{split}"
        instances = {"json_file": instance_json(root, name), "image_root": semantic["image_root"]}
        metadata = {**instance_metadata(things(classes)), **instances, "evaluator_type": "coco"}
        set_dataset(name, functools.partial(load_instances, name, LAYOUT, **instances), metadata)


def _semantic_paths(root: str, split: str) -> dict[str, str]:
    folder = os.path.join(root, "mapillary_vistas", SPLITS[split])
    return {"image_root": os.path.join(folder, "images"), "sem_seg_root": os.path.join(folder, "labels")}


def _panoptic_paths(root: str, split: str) -> dict[str, Any]:
    folder = os.path.join(root, "mapillary_vistas", SPLITS[split])
    return {
        "image_root": os.path.join(folder, "images"),
        "panoptic_root": os.path.join(folder, "panoptic"),
        "panoptic_json": os.path.join(folder, "panoptic", "panoptic_2018.json"),
    }


def instance_json(root: str, name: str) -> str:
    """Where datasets/prepare_mapillary.py puts the instances of a dataset."""
    return os.path.join(root, "mapillary_vistas", f"{name}.json")
