"""Mapillary Vistas v2.0 (124 classes): semantic, panoptic, and instances of its thing classes.

Names, colours and order of the classes are read from the dataset's own config_v2.0.json when they are first needed,
and which are things from its panoptic json.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from ..errors import BadRecordError
from .catalog import FileMetadata, Records, require_files, set_dataset
from .class_table import Category, column, instance_metadata, panoptic_classes, panoptic_metadata, things
from .instances import load_instances
from .json_file import read_json_object
from .mapillary import SPLITS, instance_json
from .panoptic import PanopticLayout, load_panoptic, text_id
from .semantic import load_semantic

_UNLABELED = "void--unlabeled"

LAYOUT = """\
<root>/mapillary_vistas/
  config_v2.0.json
  {training,validation}/
    images/                 pictures, *.jpg
    v2.0/labels/            label PNG files
    v2.0/panoptic/          PNG files with segment ids, and panoptic_2020.json
  mapillary_vistas_v2_instance_{train,val}.json   made by datasets/prepare_mapillary.py"""

_SEMANTIC_KEYS = ("stuff_classes", "stuff_colors", "ignore_label")
_INSTANCE_KEYS = ("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id")
_PANOPTIC_KEYS = (*_SEMANTIC_KEYS, *_INSTANCE_KEYS, "stuff_dataset_id_to_contiguous_id", "label_divisor")


def register_mapillary_v2(root: str) -> None:
    """Register the names of Mapillary Vistas v2.0 below `root`/mapillary_vistas; no file is touched."""
    base = os.path.join(root, "mapillary_vistas")
    config = os.path.join(base, "config_v2.0.json")
    for split, folder in SPLITS.items():
        images = os.path.join(base, folder, "images")
        semantic = {"image_root": images, "sem_seg_root": os.path.join(base, folder, "v2.0", "labels")}
        name = f"mapillary_vistas_v2_sem_seg_{split}"
        read = functools.partial(_semantic_metadata, name, config)
        metadata = FileMetadata(_SEMANTIC_KEYS, read, name=name, **semantic, evaluator_type="sem_seg")
        set_dataset(name, functools.partial(load_semantic, name, **semantic, layout=LAYOUT), metadata)

        name = f"mapillary_vistas_v2_panoptic_{split}"
        panoptic = os.path.join(base, folder, "v2.0", "panoptic")
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
        set_dataset(name, functools.partial(load_instances, name, LAYOUT, **instances), metadata)


def read_classes(name: str, config: str) -> list[Category]:
    """The classes of config_v2.0.json in the order of the values of the label maps: key, name, color.

    Args:
        name: of the dataset, for messages.
        config: path of the file.

    Raises:
        FileNotFoundError: no such file; shows the expected folders.
        BadRecordError: the file is malformed.
    """
    require_files(name, [config], LAYOUT)
    classes = []
    for position, label in enumerate(read_json_object(config, lists=("labels",))["labels"]):
        try:
            red, green, blue = (int(value) for value in label["color"])
            classes.append({"key": label["name"], "name": label["readable"], "color": [red, green, blue]})
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecordError(config, "needs 'name', 'readable' and 'color'", f"labels[{position}]") from error
    return classes


def _panoptic_classes(name: str, config: str, panoptic_json: str) -> list[Category]:
    """Classes with the id and isthing of the panoptic json; classes that it lacks are stuff without id."""
    classes = read_classes(name, config)
    require_files(name, [panoptic_json], LAYOUT)
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
    # Without an entry: an id that no segment has, and that is left out of the id maps.
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
    """Unlabeled pixels are neither learned nor counted: the class stays in the list, so that there are 124."""
    keys = column(classes, "key")
    return keys.index(_UNLABELED) if _UNLABELED in keys else 255


def _load_panoptic(name: str, config: str, paths: dict[str, Any]) -> Records:
    classes = _panoptic_classes(name, config, paths["panoptic_json"])
    return load_panoptic(name, PanopticLayout(panoptic_classes(classes), LAYOUT, image_id=text_id), **paths)
