"""The shapes world of `mask2former data shapes`: panoptic, instance, semantic and video names."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog

from .catalog import Records, require_files, set_dataset
from .categories import class_table, column, instance_metadata, panoptic_classes, panoptic_metadata, things
from .coco_json import load_instances
from .coco_panoptic import PanopticLayout, load_panoptic
from .semantic_folder import load_semantic
from .ytvis_json import load_ytvis_json

LAYOUT = """\
<root>/shapes/                          written by: mask2former data shapes <root>/shapes
  images/{train,val}/                   images, 000000.jpg
  annotations/instances_{train,val}.json, annotations/panoptic_{train,val}.json
  panoptic_{train,val}/                 PNG files with segment ids
  semantic_{train,val}/                 PNG files with class indices, which classes.txt names
  videos/{train,val}.json, videos/{train,val}/JPEGImages/<clip>/00000.jpg"""

SPLITS = ("train", "val")


@dataclass(frozen=True)
class ShapesFiles:
    """Paths of the files and directories of a dataset below `root`."""

    root: str

    @property
    def recipe(self) -> str:
        """Return the JSON file with seed, version and options."""
        return os.path.join(self.root, "shapes.json")

    @property
    def readme(self) -> str:
        """Return the description for people."""
        return os.path.join(self.root, "README.md")

    @property
    def classes(self) -> str:
        """Return the text file with the name of each class index, one a line."""
        return os.path.join(self.root, "classes.txt")

    def images(self, split: str) -> str:
        """Return the directory of the images."""
        return os.path.join(self.root, "images", split)

    def instances(self, split: str) -> str:
        """Return the COCO instance JSON file."""
        return os.path.join(self.root, "annotations", f"instances_{split}.json")

    def panoptic(self, split: str) -> str:
        """Return the COCO panoptic JSON file."""
        return os.path.join(self.root, "annotations", f"panoptic_{split}.json")

    def panoptic_png(self, split: str) -> str:
        """Return the directory of the PNG files with segment ids."""
        return os.path.join(self.root, f"panoptic_{split}")

    def semantic_png(self, split: str) -> str:
        """Return the directory of the label maps."""
        return os.path.join(self.root, f"semantic_{split}")

    def videos(self, split: str) -> str:
        """Return the YouTube-VIS JSON file."""
        return os.path.join(self.root, "videos", f"{split}.json")

    def frames(self, split: str) -> str:
        """Return the directory of the frames, one directory for each clip."""
        return os.path.join(self.root, "videos", split, "JPEGImages")


def register_shapes(root: str) -> None:
    """Register shapes_{train,val}_{panoptic,instance,semantic,video} below `root`/shapes without reading any file."""
    files = ShapesFiles(os.path.join(root, "shapes"))
    for split in SPLITS:
        _register_panoptic(f"shapes_{split}_panoptic", files, split)
        _register_semantic(f"shapes_{split}_semantic", files, split)
        paths = {"json_file": files.instances(split), "image_root": files.images(split)}
        instance = functools.partial(load_instances, f"shapes_{split}_instance", LAYOUT, **paths)
        _register_objects(f"shapes_{split}_instance", instance, paths, "coco")
        paths = {"json_file": files.videos(split), "image_root": files.frames(split)}
        video = functools.partial(_load_video, f"shapes_{split}_video", **paths)
        _register_objects(f"shapes_{split}_video", video, paths, "ytvis")


def _register_panoptic(name: str, files: ShapesFiles, split: str) -> None:
    classes = class_table("shapes")
    paths: dict[str, Any] = {
        "image_root": files.images(split),
        "panoptic_root": files.panoptic_png(split),
        "panoptic_json": files.panoptic(split),
        "sem_seg_root": files.semantic_png(split),
    }
    layout = PanopticLayout(panoptic_classes(classes), LAYOUT)
    metadata = {
        **panoptic_metadata(classes, only_things_among_things=True),
        **paths,
        "json_file": files.instances(split),
        "evaluator_type": "coco_panoptic_seg",
    }
    set_dataset(name, functools.partial(load_panoptic, name, layout, **paths), metadata)


def _register_semantic(name: str, files: ShapesFiles, split: str) -> None:
    classes = class_table("shapes")
    paths = {"image_root": files.images(split), "sem_seg_root": files.semantic_png(split)}
    metadata = {
        "stuff_classes": column(classes, "name"),
        "stuff_colors": column(classes, "color"),
        **paths,
        "evaluator_type": "sem_seg",
        "ignore_label": 255,
    }
    set_dataset(name, functools.partial(load_semantic, name, **paths, layout=LAYOUT), metadata)


def _register_objects(name: str, load: functools.partial[Records], paths: dict[str, str], evaluator_type: str) -> None:
    metadata = {**instance_metadata(things(class_table("shapes"))), **paths, "evaluator_type": evaluator_type}
    set_dataset(name, load, metadata)


def _load_video(name: str, json_file: str, image_root: str) -> Records:
    require_files(name, [json_file, image_root], LAYOUT)
    return load_ytvis_json(json_file, image_root, MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id)
