"""COCO: the instance and panoptic datasets of detectron2, and `..._panoptic_with_sem_seg`.

detectron2 lists 133 classes as "things" of coco_2017_{train,val}_panoptic. Mask2Former needs the 80 actual things, so
these two datasets have 80 thing classes here; their records are the same.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_LVIS
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.coco import load_sem_seg
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json

from .catalog import Records, require_files, set_dataset
from .categories import class_table, column, index_by_id, instance_metadata, panoptic_classes, panoptic_metadata, things
from .coco_json import load_instances
from .coco_panoptic import PanopticLayout, load_panoptic
from .semantic_folder import load_semantic

# name -> image directory, annotation file without extension
_INSTANCES = {
    "coco_2014_train": ("train2014", "instances_train2014"),
    "coco_2014_val": ("val2014", "instances_val2014"),
    "coco_2014_minival": ("val2014", "instances_minival2014"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "coco_2017_train": ("train2017", "instances_train2017"),
    "coco_2017_val": ("val2017", "instances_val2017"),
    "coco_2017_test": ("test2017", "image_info_test2017"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100"),
}
# name -> image directory, suffix of the panoptic files
_PANOPTIC = {
    "coco_2017_train": ("train2017", "train2017"),
    "coco_2017_val": ("val2017", "val2017"),
    "coco_2017_val_100": ("val2017", "val2017_100"),
}

LAYOUT = """\
<root>/coco/
  annotations/
    instances_{train,val}2017.json
    panoptic_{train,val}2017.json
  {train,val}2017/             images, 000000000139.jpg
  panoptic_{train,val}2017/    PNG files with segment ids, unpacked by datasets/prepare_coco_panoptic_zips.py
  panoptic_semseg_{train,val}2017/   written by datasets/prepare_coco_semantic_annos_from_panoptic_annos.py"""


def coco_categories() -> tuple[dict[str, Any], ...]:
    """Return the 133 categories (id, name, isthing, color) in the order of the class index, things first."""
    return class_table("coco_panoptic")


def register_coco(root: str) -> None:
    """Register all COCO names below `root`/coco without reading any file."""
    directory = os.path.join(root, "coco")
    for name, (images, stem) in _INSTANCES.items():
        paths = {
            "json_file": os.path.join(directory, "annotations", f"{stem}.json"),
            "image_root": os.path.join(directory, images),
        }
        load = functools.partial(load_instances, name, LAYOUT, **paths)
        set_dataset(name, load, {**instance_metadata(things(coco_categories())), **paths, "evaluator_type": "coco"})
    for base, (images, suffix) in _PANOPTIC.items():
        common = {
            "image_root": os.path.join(directory, images),
            "panoptic_root": os.path.join(directory, f"panoptic_{suffix}"),
            "panoptic_json": os.path.join(directory, "annotations", f"panoptic_{suffix}.json"),
            "json_file": os.path.join(directory, "annotations", f"instances_{suffix}.json"),
        }
        _register_standard(f"{base}_panoptic", common)
        stuff_root = os.path.join(directory, f"panoptic_stuff_{suffix}")
        _register_separated(f"{base}_panoptic", common, stuff_root)
        if not suffix.endswith("_100"):
            semantic_root = os.path.join(directory, f"panoptic_semseg_{suffix}")
            _register_with_sem_seg(f"{base}_panoptic_with_sem_seg", common, semantic_root)


def load_coco_panoptic(
    name: str,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str | None = None,
    json_file: str | None = None,
) -> Records:
    """Load a dataset in the COCO panoptic format with the 133 COCO categories; see `load_panoptic`.

    `json_file`, the annotation file of the instances, is not read.
    """
    layout = PanopticLayout(panoptic_classes(coco_categories()), LAYOUT)
    return load_panoptic(name, layout, image_root, panoptic_root, panoptic_json, sem_seg_root)


def _panoptic_metadata(paths: dict[str, str], with_things: bool) -> dict[str, Any]:
    """Return metadata whose stuff classes are all 133; their id map has things too if `with_things`."""
    return {
        **panoptic_metadata(coco_categories(), only_things_among_things=True, things_among_stuff=with_things),
        **paths,
        "evaluator_type": "coco_panoptic_seg",
    }


def _register_standard(name: str, paths: dict[str, str]) -> None:
    metadata = _panoptic_metadata(paths, with_things=False)
    if name == "coco_2017_val_100_panoptic":  # not used by Mask2Former: keeps detectron2's lists
        metadata.update(thing_classes=metadata["stuff_classes"], thing_colors=metadata["stuff_colors"])
    set_dataset(name, functools.partial(load_coco_panoptic, name, **paths), metadata)


def _register_with_sem_seg(name: str, common: dict[str, str], sem_seg_root: str) -> None:
    paths = {**common, "sem_seg_root": sem_seg_root}
    metadata = _panoptic_metadata(paths, with_things=True)
    set_dataset(name, functools.partial(load_coco_panoptic, name, **paths), metadata)


def _register_separated(base: str, common: dict[str, str], stuff_root: str) -> None:
    """Register the two variants for Panoptic FPN: instances and stuff, and stuff only."""
    shared = {
        **_get_builtin_metadata("coco_panoptic_separated"),
        "sem_seg_root": stuff_root,
        "ignore_label": 255,
    }

    def load_stuff() -> Records:
        require_files(f"{base}_stuffonly", [stuff_root, common["image_root"]], LAYOUT)
        return load_sem_seg(stuff_root, common["image_root"])

    def load_both() -> Records:
        name = f"{base}_separated"
        instances = load_instances(name, LAYOUT, common["json_file"], common["image_root"])
        return merge_to_panoptic(instances, load_stuff())

    set_dataset(f"{base}_separated", load_both, {**shared, **common, "evaluator_type": "coco_panoptic_seg"})
    metadata = {**shared, "image_root": common["image_root"], "evaluator_type": "sem_seg"}
    set_dataset(f"{base}_stuffonly", load_stuff, metadata)


STUFF_LAYOUT = """\
<root>/coco/coco_stuff_10k/
  images/, annotations/, imageLists/          COCO-Stuff 10k as downloaded
  images_detectron2/{train,test}/             images, written by datasets/prepare_coco_stuff_10k.py
  annotations_detectron2/{train,test}/        label PNG files, written by the same script"""


def register_coco_stuff(root: str) -> None:
    """Register coco_2017_{train,test}_stuff_10k_sem_seg below `root` without reading any file."""
    directory = os.path.join(root, "coco", "coco_stuff_10k")
    classes = class_table("coco_stuff_10k")
    for split in ("train", "test"):
        name = f"coco_2017_{split}_stuff_10k_sem_seg"
        paths = {
            "image_root": os.path.join(directory, "images_detectron2", split),
            "sem_seg_root": os.path.join(directory, "annotations_detectron2", split),
        }
        metadata = {
            "stuff_classes": column(classes, "name"),
            "stuff_dataset_id_to_contiguous_id": index_by_id(classes),
            **paths,
            "evaluator_type": "sem_seg",
            "ignore_label": 255,
        }
        set_dataset(name, functools.partial(load_semantic, name, **paths, layout=STUFF_LAYOUT), metadata)


LVIS_LAYOUT = """\
<root>/
  coco/{train,val,test}2017/      images of COCO
  lvis/lvis_v1_{train,val}.json   annotations (also lvis_v0.5_*.json)"""


def register_lvis(root: str) -> None:
    """Register the LVIS names below `root` without reading any file."""
    for family, splits in _PREDEFINED_SPLITS_LVIS.items():
        for name, (images, file) in splits.items():
            paths = {"json_file": os.path.join(root, file), "image_root": os.path.join(root, images)}
            metadata = {**get_lvis_instances_meta(family), **paths, "evaluator_type": "lvis"}
            set_dataset(name, functools.partial(_load_lvis, name, **paths), metadata)


def _load_lvis(name: str, json_file: str, image_root: str) -> Records:
    require_files(name, [json_file, image_root], LVIS_LAYOUT)
    return load_lvis_json(json_file, image_root, name)
