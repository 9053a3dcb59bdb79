"""YouTube-VIS: its classes, and records that list annotations by frame, as mappers of other projects read them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..._sibling import core
from .ytvis_api.ytvos import YTVOS

_categories = core("data.datasets.categories")

YTVIS_CATEGORIES_2019 = [{"isthing": 1, **entry} for entry in _categories.class_table("ytvis_2019")]
YTVIS_CATEGORIES_2021 = [{"isthing": 1, **entry} for entry in _categories.class_table("ytvis_2021")]

__all__ = [
    "YTVIS_CATEGORIES_2019",
    "YTVIS_CATEGORIES_2021",
    "load_ytvis_json",
    "register_ytvis_instances",
]


def _get_ytvis_2019_instances_meta() -> dict[str, Any]:
    return dict(_categories.instance_metadata(_categories.class_table("ytvis_2019")))


def _get_ytvis_2021_instances_meta() -> dict[str, Any]:
    return dict(_categories.instance_metadata(_categories.class_table("ytvis_2021")))


def load_ytvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Load the records of a YouTube-VIS or OVIS JSON file.

    Args:
        json_file: file name.
        image_root: directory of the frames.
        dataset_name: its metadata gets `thing_classes` and `thing_dataset_id_to_contiguous_id` of the file.
        extra_annotation_keys: further keys of an annotation that each of its frames gets.

    Returns:
        {"file_names" (T paths), "height", "width", "length" (T), "video_id", "annotations"} each; the last holds for
        each frame the objects that it shows: {"id", "category_id" (class index), "iscrowd", "bbox", "bbox_mode",
        "segmentation"}.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: the file is malformed.
    """
    file = YTVOS(json_file)
    classes = {number: index for index, number in enumerate(file.checked.categories)}
    if dataset_name is not None:
        metadata = MetadataCatalog.get(dataset_name)
        metadata.thing_classes = list(file.checked.categories.values())
        metadata.thing_dataset_id_to_contiguous_id = classes
    records: list[dict[str, Any]] = core("data.datasets.ytvis_json").video_records(file.checked, image_root, classes)
    for record in records:
        frames: list[list[dict[str, Any]]] = [[] for _ in record["file_names"]]
        for track in record.get("annotations", ()):
            entry = file.anns[track["id"]]
            common = {key: track[key] for key in ("id", "category_id", "iscrowd")}
            common |= {key: entry[key] for key in extra_annotation_keys or () if key in entry}
            for position, segmentation in enumerate(track["segmentations"]):
                if segmentation:
                    box = _box(file, entry, position)
                    shape = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "segmentation": segmentation}
                    frames[position].append({**common, **shape})
        record["annotations"] = frames
    return records


def _box(file: YTVOS, entry: Mapping[str, Any], frame: int) -> list[float]:
    """Return (x, y, width, height) of an object in a frame: as annotated, else of its mask."""
    boxes = entry.get("bboxes")
    if isinstance(boxes, list) and frame < len(boxes) and boxes[frame]:
        return list(boxes[frame])
    return [float(side) for side in mask_util.toBbox(file.annToRLE(entry, frame))]


def register_ytvis_instances(name: str, metadata: Mapping[str, Any], json_file: str, image_root: str) -> None:
    """Register a dataset of videos; it replaces a default of this package with the name.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        metadata: further entries of its metadata, such as `thing_classes`.
        json_file, image_root: see `load_ytvis_json`.
    """
    DatasetCatalog.register(name, functools.partial(load_ytvis_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="ytvis", **metadata)
