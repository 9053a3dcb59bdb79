"""Mapillary Vistas 1.2 (65 classes, instances too) and 2.0 (124 classes)."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from ...errors import BadRecordError
from ...utils.file_io import read_json_object
from .catalog import FileMetadata, Records, require_files, set_dataset
from .categories import Category, class_table, column, instance_metadata, panoptic_classes, panoptic_metadata, things
from .coco_json import load_instances
from .coco_panoptic import PanopticLayout, load_panoptic, text_id
from .semantic_folder import load_semantic

SPLITS = {"train": "training", "val": "validation"}
VOID = 65  # value of "Unlabeled" in the label maps

LAYOUT = """\
<root>/mapillary_vistas/
  {training,validation}/
    images/      images, *.jpg
    labels/      label PNG files of v1.2 (in the archive of v2.0: v1.2/labels)
    panoptic/    PNG files with segment ids, and panoptic_2018.json (in the archive of v2.0: v1.2/panoptic)
  mapillary_vistas_instance_{train,val}.json   written by datasets/prepare_mapillary.py, which also links v1.2/"""


def register_mapillary(root: str) -> None:
    """Register the names of Mapillary Vistas v1.2 below `root`/mapillary_vistas without reading any file."""
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
    directory = os.path.join(root, "mapillary_vistas", SPLITS[split])
    return {"image_root": os.path.join(directory, "images"), "sem_seg_root": os.path.join(directory, "labels")}


def _panoptic_paths(root: str, split: str) -> dict[str, Any]:
    directory = os.path.join(root, "mapillary_vistas", SPLITS[split])
    return {
        "image_root": os.path.join(directory, "images"),
        "panoptic_root": os.path.join(directory, "panoptic"),
        "panoptic_json": os.path.join(directory, "panoptic", "panoptic_2018.json"),
    }


def instance_json(root: str, name: str) -> str:
    """Return the path of the instance annotations that datasets/prepare_mapillary.py writes."""
    return os.path.join(root, "mapillary_vistas", f"{name}.json")


_UNLABELED = "void--unlabeled"

V2_LAYOUT = """\
<root>/mapillary_vistas/
  config_v2.0.json
  {training,validation}/
    images/                 images, *.jpg
    v2.0/labels/            label PNG files
    v2.0/panoptic/          PNG files with segment ids, and panoptic_2020.json
  mapillary_vistas_v2_instance_{train,val}.json   written by datasets/prepare_mapillary.py"""

_SEMANTIC_KEYS = ("stuff_classes", "stuff_colors", "ignore_label")
_INSTANCE_KEYS = ("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id")
_PANOPTIC_KEYS = (*_SEMANTIC_KEYS, *_INSTANCE_KEYS, "stuff_dataset_id_to_contiguous_id", "label_divisor")


def register_mapillary_v2(root: str) -> None:
    """Register the names of Mapillary Vistas v2.0 below `root`/mapillary_vistas without reading any file."""
    base = os.path.join(root, "mapillary_vistas")
    config = os.path.join(base, "config_v2.0.json")
    for split, directory in SPLITS.items():
        images = os.path.join(base, directory, "images")
        semantic = {"image_root": images, "sem_seg_root": os.path.join(base, directory, "v2.0", "labels")}
        name = f"mapillary_vistas_v2_sem_seg_{split}"
        read = functools.partial(_semantic_metadata, name, config)
        metadata = FileMetadata(_SEMANTIC_KEYS, read, name=name, **semantic, evaluator_type="sem_seg")
        set_dataset(name, functools.partial(load_semantic, name, **semantic, layout=V2_LAYOUT), metadata)

        name = f"mapillary_vistas_v2_panoptic_{split}"
        panoptic = os.path.join(base, directory, "v2.0", "panoptic")
        paths = {
            "image_root": images,
            "panoptic_root": panoptic,
            "panoptic_json": os.path.join(panoptic, "panoptic_2020.json"),
        }
        read = functools.partial(_panoptic_metadata, name, config, paths["panoptic_json"])
        fixed = {**paths, "json_file": None, "evaluator_type": "mapillary_vistas_panoptic_seg"}
        metadata = FileMetadata(_PANOPTIC_KEYS, read, name=name, **fixed)
        load = functools.partial(_load_panoptic, name, config, {**paths, "sem_seg_root": semantic["sem_seg_root"]})
        set_dataset(name, load, metadata)

        name = f"mapillary_vistas_v2_instance_{split}"
        instances = {"json_file": instance_json(root, name), "image_root": images}
        read = functools.partial(_instance_metadata, name, config, paths["panoptic_json"])
        metadata = FileMetadata(_INSTANCE_KEYS, read, name=name, **instances, evaluator_type="coco")
        set_dataset(name, functools.partial(load_instances, name, V2_LAYOUT, **instances), metadata)


def read_classes(name: str, config: str) -> list[Category]:
    """Read the classes (key, name, color) of config_v2.0.json in the order of the values of the label maps.

    Args:
        name: name of the dataset, for messages.
        config: path of the file.

    Raises:
        FileNotFoundError: no such file; shows the expected directories.
        BadRecordError: the file is malformed.
    """
    require_files(name, [config], V2_LAYOUT)
    classes = []
    for position, label in enumerate(read_json_object(config, lists=("labels",))["labels"]):
        try:
            red, green, blue = (int(value) for value in label["color"])
            classes.append({"key": label["name"], "name": label["readable"], "color": [red, green, blue]})
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecordError(config, "needs 'name', 'readable' and 'color'", f"labels[{position}]") from error
    return classes


def _panoptic_classes(name: str, config: str, panoptic_json: str) -> list[Category]:
    """Read the classes with id and isthing of the panoptic JSON; those that it lacks are stuff with a negative id."""
    classes = read_classes(name, config)
    require_files(name, [panoptic_json], V2_LAYOUT)
    declared = {}
    for position, entry in enumerate(read_json_object(panoptic_json, lists=("categories",))["categories"]):
        try:
            declared[entry["name"]] = {"id": int(entry["id"]), "isthing": int(bool(entry["isthing"]))}
        except (KeyError, TypeError, ValueError) as error:
            where = f"categories[{position}]"
            raise BadRecordError(panoptic_json, "needs 'id', 'name' and 'isthing'", where) from error
    unknown = sorted(declared.keys() - set(column(classes, "key")))
    if unknown:
        raise BadRecordError(panoptic_json, f"categories {unknown[:5]} are not among the labels of {config}")
    # Negative ids occur in no segment and are left out of the id maps.
    missing = [{"id": -1 - index, "isthing": 0} for index in range(len(classes))]
    return [{**entry, **declared.get(entry["key"], default)} for entry, default in zip(classes, missing, strict=True)]


def _semantic_metadata(name: str, config: str) -> dict[str, Any]:
    classes = read_classes(name, config)
    return {
        "stuff_classes": column(classes, "name"),
        "stuff_colors": column(classes, "color"),
        "ignore_label": _void(classes),
    }


def _panoptic_metadata(name: str, config: str, panoptic_json: str) -> dict[str, Any]:
    classes = _panoptic_classes(name, config, panoptic_json)
    metadata = panoptic_metadata(classes, ignore_label=_void(classes))
    ids = metadata["stuff_dataset_id_to_contiguous_id"]
    return {**metadata, "stuff_dataset_id_to_contiguous_id": {key: index for key, index in ids.items() if key >= 0}}


def _instance_metadata(name: str, config: str, panoptic_json: str) -> dict[str, Any]:
    return instance_metadata(things(_panoptic_classes(name, config, panoptic_json)))


def _void(classes: Sequence[Category]) -> int:
    """Return the label of unlabeled pixels, which are ignored; their class stays in the list of 124."""
    keys = column(classes, "key")
    return keys.index(_UNLABELED) if _UNLABELED in keys else 255


def _load_panoptic(name: str, config: str, paths: dict[str, Any]) -> Records:
    classes = _panoptic_classes(name, config, paths["panoptic_json"])
    return load_panoptic(name, PanopticLayout(panoptic_classes(classes), V2_LAYOUT, image_id=text_id), **paths)
