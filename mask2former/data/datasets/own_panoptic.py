"""Your own data in the COCO panoptic format: a json, its PNG files, and a folder of pictures, in one call."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from mask2former.visualize import color_of

from ..errors import BadRecordError
from .catalog import Records
from .class_table import Category, panoptic_classes, panoptic_metadata
from .json_file import read_json_object
from .own_names import file_state, locate, register_own
from .panoptic import PanopticLayout, load_panoptic

LAYOUT = """\
panoptic.json   {"categories": [{"id", "name", "isthing"}, ...],
                 "images": [{"id", "file_name", "height", "width"}, ...],
                 "annotations": [{"image_id", "file_name", "segments_info": [{"id", "category_id"}, ...]}, ...]}
image folder/   the file_name of each of "images" (or the name of the PNG file with .jpg)
PNG folder/     the file_name of each of "annotations": RGB, segment id = R + 256 G + 65536 B, 0 = no segment"""

Path = str | os.PathLike[str]


def register_panoptic(
    name: str,
    json_file: Path,
    image_root: Path,
    png_root: Path,
    *,
    sem_seg_root: Path | None = None,
    instances_json: Path | None = None,
    ignore_value: int = 255,
    skip_bad_records: bool = False,
) -> None:
    """Register a dataset in the COCO panoptic format under a name of your choice.

    The categories are read now (classes in the order of their ids, which need not be contiguous; "isthing" says which
    have countable objects), everything else when the dataset is loaded. Relative paths are looked up in the working
    directory, then below the dataset root. A second call with the same name replaces the first.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        json_file: see `LAYOUT`.
        image_root: folder of the pictures.
        png_root: folder of the PNG files with segment ids.
        sem_seg_root: folder of label maps named as the PNG files; without it, semantic results are evaluated on labels
            made from the segments.
        instances_json: COCO instance json of the things, with the same ids; needed to evaluate instance AP.
        ignore_value: "no class" in the label maps.
        skip_bad_records: leave out and report pictures with bad records instead of raising on the first.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        BadRecordError: the json file or its categories are malformed.
        ValueError: the name is taken by other code.
    """
    json_path = locate(json_file)
    paths = {"image_root": locate(image_root), "panoptic_root": locate(png_root), "panoptic_json": json_path}
    labels = {} if sem_seg_root is None else {"sem_seg_root": locate(sem_seg_root)}
    instances = {} if instances_json is None else {"json_file": locate(instances_json)}

    def describe() -> tuple[Callable[[], Records], dict[str, Any]]:
        classes = _read_categories(json_path)
        layout = PanopticLayout(panoptic_classes(classes), LAYOUT, image_id=_same_id)
        load = functools.partial(load_panoptic, name, layout, **paths, **labels, skip_bad_records=skip_bad_records)
        metadata = {
            **panoptic_metadata(classes, ignore_label=ignore_value),
            **paths,
            **labels,
            **instances,
            "evaluator_type": "coco_panoptic_seg",
        }
        return load, metadata

    settings = (*paths.values(), *labels.items(), *instances.items(), ignore_value, skip_bad_records)
    register_own(name, (*file_state(json_path), *settings), describe)


def _same_id(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"image_id {value!r} is neither a number nor a name")
    return value


def _read_categories(file: str) -> list[Category]:
    """Categories in the order of their ids, with colours where the file has none."""
    found: dict[int, Category] = {}
    for position, entry in enumerate(read_json_object(file, lists=("categories",))["categories"]):
        where = f"categories[{position}]"
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or entry["id"] < 0:
            raise BadRecordError(file, "needs an integer 'id' of 0 or more", where)
        if not isinstance(entry.get("name"), str) or not entry["name"]:
            raise BadRecordError(file, "needs a 'name'", where)
        if entry.get("isthing") not in (0, 1):
            raise BadRecordError(file, "needs 'isthing': 1 where objects are told apart, 0 for stuff", where)
        if entry["id"] in found:
            raise BadRecordError(file, f"id {entry['id']} is used twice", where)
        found[entry["id"]] = entry
    if not found:
        raise BadRecordError(file, "declares no categories")
    return [
        {
            "id": key,
            "name": entry["name"],
            "isthing": int(entry["isthing"]),
            "color": [int(value) for value in entry.get("color") or color_of(index)],
        }
        for index, (key, entry) in enumerate(sorted(found.items()))
    ]
