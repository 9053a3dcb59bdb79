"""YouTube-VIS 2019 and 2021, and OVIS; the ground truth of val and test is on evaluation servers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from detectron2.data import MetadataCatalog

from .catalog import FileMetadata, Records, require_files, set_dataset
from .categories import class_table, instance_metadata
from .ytvis_json import category_metadata, load_ytvis_json

_SPLITS = {"train": "train", "val": "valid", "test": "test"}  # suffix of the name -> directory

YTVIS_LAYOUT = """\
<root>/{family}/
  train.json, valid.json, test.json     copies of or links to train/instances.json and so on of the download
  {{train,valid,test}}/JPEGImages/<video>/00000.jpg"""

OVIS_LAYOUT = """\
<root>/ovis/
  annotations_train.json, annotations_valid.json, annotations_test.json
  {train,valid,test}/<video>/img_0000001.jpg"""


FAMILIES = ("ytvis_2019", "ytvis_2021")


def register_ytvis(root: str) -> None:
    """Register the names of YouTube-VIS below `root` without reading any file."""
    for family in FAMILIES:
        register_ytvis_family(root, family, _load)


def register_ytvis_family(root: str, family: str, load: Callable[..., Records]) -> None:
    """Register the names of one year of YouTube-VIS.

    Args:
        root: directory of the datasets.
        family: one of FAMILIES.
        load: returns the records; called with name, layout (for messages), JSON file and directory of the frames.
    """
    for name, (directory, file) in ytvis_splits(family).items():
        paths = {"json_file": os.path.join(root, file), "image_root": os.path.join(root, directory)}
        metadata = {**instance_metadata(class_table(family)), **paths, "evaluator_type": "ytvis"}
        set_dataset(name, functools.partial(load, name, YTVIS_LAYOUT.format(family=family), **paths), metadata)


def ytvis_splits(family: str) -> dict[str, tuple[str, str]]:
    """Return name -> directory of the frames and JSON file, both below the root."""
    return {
        f"{family}_{split}": (f"{family}/{directory}/JPEGImages", f"{family}/{directory}.json")
        for split, directory in _SPLITS.items()
    }


def register_ovis(root: str) -> None:
    """Register the names of OVIS, whose classes are read from its JSON files when they are first needed."""
    for split, directory in _SPLITS.items():
        _register_ovis(root, f"ovis_{split}", directory)


def _register_ovis(root: str, name: str, directory: str) -> None:
    paths = {
        "json_file": os.path.join(root, "ovis", f"annotations_{directory}.json"),
        "image_root": os.path.join(root, "ovis", directory),
    }

    def read() -> dict[str, Any]:
        require_files(name, [paths["json_file"]], OVIS_LAYOUT)
        return category_metadata(paths["json_file"])

    keys = ("thing_classes", "thing_dataset_id_to_contiguous_id")
    metadata = FileMetadata(keys, read, name=name, **paths, evaluator_type="ytvis")
    set_dataset(name, functools.partial(_load, name, OVIS_LAYOUT, **paths), metadata)


def _load(name: str, layout: str, json_file: str, image_root: str) -> Records:
    """Load the records of a registered name.

    Raises:
        FileNotFoundError: the JSON file or the directory of frames is missing; shows the expected directories.
        BadRecordError: the JSON file is malformed or has categories that the dataset does not have.
    """
    require_files(name, [json_file, image_root], layout)
    return load_ytvis_json(json_file, image_root, MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id)
