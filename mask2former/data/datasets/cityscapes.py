"""Cityscapes: semantic and panoptic with 19 classes, instances of 8; read without cityscapesScripts.

Instance masks of `cityscapes_fine_instance_seg_*` are those of the `instanceIds` files, the ground truth of the
official evaluation. detectron2 makes them from the polygons, which cannot have holes and are half a pixel larger;
`cityscapes_fine_instance_seg_polygons_*` are these.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import numpy as np
from detectron2.data.datasets.cityscapes import load_cityscapes_instances as load_with_detectron2

from ...utils.parallel import map_parallel
from ..image_io import read_label_map
from .catalog import Records, require_files, require_some, set_dataset
from .categories import class_table, column, index_by_id, panoptic_classes, panoptic_metadata, things
from .coco_panoptic import Object, PanopticLayout, annotations_from_ids, load_panoptic, text_id

LAYOUT = """\
<root>/cityscapes/
  leftImg8bit/{train,val,test}/<city>/     images, aachen_000000_000019_leftImg8bit.png
  gtFine/{train,val,test}/<city>/
    aachen_000000_000019_gtFine_instanceIds.png
    aachen_000000_000019_gtFine_polygons.json       for cityscapes_fine_instance_seg_polygons_{train,val}
    aachen_000000_000019_gtFine_labelTrainIds.png   written by datasets/prepare_cityscapes.py
  gtFine/cityscapes_panoptic_{train,val}.json, gtFine/cityscapes_panoptic_{train,val}/   written by the same script"""

_SUFFIX = "_leftImg8bit.png"
# In instanceIds an object is 1000 x its label id + a number; a crowd region has the label id alone.
_DIVISOR = 1000


class _Files(NamedTuple):
    image: str
    labels: str  # prefix of the annotation files


def register_cityscapes(root: str) -> None:
    """Register all Cityscapes names below `root`/cityscapes without reading any file."""
    directory = os.path.join(root, "cityscapes")
    names = {
        "thing_classes": column(things(class_table("cityscapes")), "name"),
        "stuff_classes": column(class_table("cityscapes"), "name"),
    }
    for split in ("train", "val", "test"):
        paths = {
            "image_dir": os.path.join(directory, f"leftImg8bit/{split}/"),
            "gt_dir": os.path.join(directory, f"gtFine/{split}/"),
        }
        name = f"cityscapes_fine_instance_seg_{split}"
        metadata: dict[str, Any] = {**names, **paths, "evaluator_type": "cityscapes_instance"}
        set_dataset(name, functools.partial(load_cityscapes_instances, name, **paths), metadata)
        name = f"cityscapes_fine_instance_seg_polygons_{split}"
        set_dataset(name, functools.partial(load_cityscapes_polygons, name, **paths), metadata)
        name = f"cityscapes_fine_sem_seg_{split}"
        metadata = {**names, **paths, "evaluator_type": "cityscapes_sem_seg", "ignore_label": 255}
        set_dataset(name, functools.partial(load_cityscapes_semantic, name, **paths), metadata)
    for split in ("train", "val"):
        _register_panoptic(directory, split)


def load_cityscapes_semantic(name: str, image_dir: str, gt_dir: str) -> Records:
    """Load records with file_name and sem_seg_file_name, in the order of the file names.

    Raises:
        FileNotFoundError: the directories or the label maps are missing; shows the expected directories.
    """
    return [
        {"file_name": files.image, "sem_seg_file_name": f"{files.labels}_labelTrainIds.png"}
        for files in _list_files(name, image_dir, gt_dir, "_labelTrainIds.png")
    ]


def load_cityscapes_instances(name: str, image_dir: str, gt_dir: str) -> Records:
    """Load records with annotations of the 8 thing classes, read from the instanceIds files by several processes.

    Raises:
        FileNotFoundError: as `load_cityscapes_semantic`.
        BadRecordError: a file cannot be read.
    """
    files = _list_files(name, image_dir, gt_dir, "_instanceIds.png")
    return list(map_parallel(_read_instances, files, f"reading {name}"))


def load_cityscapes_polygons(name: str, image_dir: str, gt_dir: str) -> Records:
    """Load records with annotations made from the polygons by detectron2, as the published models were trained.

    Raises:
        FileNotFoundError: as `load_cityscapes_semantic`.
        ImportError: cityscapesScripts or shapely, which detectron2 needs for it, is not installed.
    """
    _list_files(name, image_dir, gt_dir, "_polygons.json")
    try:
        import cityscapesscripts.helpers.labels  # noqa: F401
        import shapely  # noqa: F401
    except ImportError as error:
        packages = "pip install cityscapesscripts shapely"
        raise ImportError(f"dataset {name!r} is read by detectron2, which needs more packages: {packages}") from error
    records = load_with_detectron2(image_dir, gt_dir, from_json=True, to_polygons=True)
    return sorted(records, key=lambda record: record["file_name"])


def _list_files(name: str, image_dir: str, gt_dir: str, suffix: str) -> list[_Files]:
    require_files(name, [image_dir, gt_dir], LAYOUT)
    pairs = []
    for city in sorted(os.listdir(image_dir)):
        if not os.path.isdir(os.path.join(image_dir, city)):
            continue
        for file in sorted(os.listdir(os.path.join(image_dir, city))):
            if file.endswith(_SUFFIX):
                stem = os.path.join(gt_dir, city, file.removesuffix(_SUFFIX))
                pairs.append(_Files(os.path.join(image_dir, city, file), f"{stem}_gtFine"))
    if not pairs:
        raise FileNotFoundError(f"dataset {name!r}: {image_dir} holds no <city>/*{_SUFFIX}. Expected:\n\n{LAYOUT}")
    require_some(name, [files.labels + suffix for files in pairs], LAYOUT)
    return pairs


def _read_instances(files: _Files) -> dict[str, Any]:
    ids = read_label_map(f"{files.labels}_instanceIds.png")
    classes = index_by_id(things(class_table("cityscapes")))
    objects = {}
    for segment in np.unique(ids).tolist():
        label = segment // _DIVISOR if segment >= _DIVISOR else segment
        if label in classes:
            objects[segment] = Object(classes[label], segment < _DIVISOR)
    height, width = ids.shape
    return {
        "file_name": files.image,
        "image_id": os.path.basename(files.image),
        "height": height,
        "width": width,
        "annotations": annotations_from_ids(ids, objects),
    }


def _register_panoptic(directory: str, split: str) -> None:
    name = f"cityscapes_fine_panoptic_{split}"
    paths: dict[str, Any] = {
        "image_root": os.path.join(directory, f"leftImg8bit/{split}"),
        "panoptic_root": os.path.join(directory, f"gtFine/cityscapes_panoptic_{split}"),
        "panoptic_json": os.path.join(directory, f"gtFine/cityscapes_panoptic_{split}.json"),
    }
    labels = os.path.join(directory, f"gtFine/{split}")
    classes = class_table("cityscapes")
    layout = PanopticLayout(panoptic_classes(classes), LAYOUT, _image_path, _labels_path, text_id)
    metadata = {
        **panoptic_metadata(classes, things_among_stuff=False),
        **paths,
        "gt_dir": labels,
        "evaluator_type": "cityscapes_panoptic_seg",
    }
    set_dataset(name, functools.partial(load_panoptic, name, layout, **paths, sem_seg_root=labels), metadata)


def _below_city(annotation: dict[str, Any], end: str) -> str:
    image_id = text_id(annotation["image_id"])
    return os.path.join(image_id.split("_")[0], image_id + end)


def _image_path(annotation: dict[str, Any], _: dict[str, Any]) -> str:
    return _below_city(annotation, _SUFFIX)


def _labels_path(annotation: dict[str, Any], _: dict[str, Any]) -> str:
    return _below_city(annotation, "_gtFine_labelTrainIds.png")
