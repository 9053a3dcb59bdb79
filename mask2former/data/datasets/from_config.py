"""Custom datasets by config keys: DATASETS.COCO_JSON, COCO_PANOPTIC, SEMANTIC_FOLDER, YTVIS_JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from ...errors import ConfigError
from ...video_registration import register_named, register_named_datasets
from .coco_json import register_coco_json
from .coco_panoptic import register_panoptic
from .semantic_folder import register_semantic_folder
from .ytvis_json import register_ytvis_json


class _Format(NamedTuple):
    entry: str  # form of an entry, for the message
    counts: tuple[int, ...]  # allowed numbers of items in an entry
    register: Callable[[Sequence[Any], bool], None]  # takes an entry, and whether bad records are skipped


def _coco_json(parts: Sequence[Any], skip: bool) -> None:
    register_coco_json(*parts, skip_bad_records=skip)


def _panoptic(parts: Sequence[Any], skip: bool) -> None:
    register_panoptic(*parts[:4], instances_json=parts[4] if len(parts) > 4 else None, skip_bad_records=skip)


def _semantic(parts: Sequence[Any], skip: bool) -> None:
    register_semantic_folder(*parts[:4], ignore_value=parts[4] if len(parts) > 4 else 255)


def _ytvis(parts: Sequence[Any], skip: bool) -> None:
    register_ytvis_json(*parts, skip_bad_records=skip)


_FORMATS = {
    "COCO_JSON": _Format("[name, json_file, image_root]", (3,), _coco_json),
    "COCO_PANOPTIC": _Format("[name, json_file, image_root, png_root] (and instances_json)", (4, 5), _panoptic),
    "SEMANTIC_FOLDER": _Format("[name, image_root, label_root, classes] (and ignore_value)", (4, 5), _semantic),
    "YTVIS_JSON": _Format("[name, json_file, image_root]", (3,), _ytvis),
}


def _has_form(entry: Any, dataset_format: _Format) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) not in dataset_format.counts:
        return False
    names = list(entry)
    if dataset_format.register is _semantic:
        if not isinstance(entry[3], (str, list, tuple)):
            return False
        names = names[:3]  # then class names and a number, which are checked where they are used
    return all(isinstance(name, str) and name for name in names)


def register_from_config(cfg: CfgNode, names: Iterable[str] | None = None) -> None:
    """Register the custom datasets of a config, and the video datasets that it names.

    Args:
        cfg: DATASETS and DATALOADER.SKIP_BAD_RECORDS are read.
        names: register only these; the files of other entries need not exist. None registers all.

    Raises:
        ConfigError: an entry does not have the form that its key needs; see also the functions that register a dataset.
    """
    names = None if names is None else tuple(names)
    for name in names or ():
        if not isinstance(name, str):
            raise ConfigError(f"DATASETS.TRAIN and DATASETS.TEST are lists of dataset names, but have {name!r}")
    register_named(cfg)
    register_named_datasets(names or ())
    requested = None if names is None else set(names)
    for key, dataset_format in _FORMATS.items():
        for entry in cfg.DATASETS[key]:
            if not _has_form(entry, dataset_format):
                raise ConfigError(f"DATASETS.{key} holds entries {dataset_format.entry}, not {entry!r}")
            if requested is None or entry[0] in requested:
                dataset_format.register(entry, cfg.DATALOADER.SKIP_BAD_RECORDS)
