"""Mapillary Vistas panoptic (65 classes) under the names that programs import; see `mapillary`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .catalog import Records
from .categories import class_table
from .mapillary import LAYOUT, VOID, register_mapillary
from .panoptic_forms import load_with_metadata, register_with_metadata, split_metadata

__all__ = [
    "MAPILLARY_VISTAS_SEM_SEG_CATEGORIES",
    "get_metadata",
    "load_mapillary_vistas_panoptic_json",
    "register_all_mapillary_vistas_panoptic",
    "register_mapillary_vistas_panoptic",
]

MAPILLARY_VISTAS_SEM_SEG_CATEGORIES: list[dict[str, Any]] = [dict(entry) for entry in class_table("mapillary_vistas")]


def get_metadata() -> dict[str, Any]:
    """Return class names, colors and id maps; `thing_classes` and `stuff_classes` both list all 65."""
    return split_metadata(class_table("mapillary_vistas"), only_things_among_things=False)


def load_mapillary_vistas_panoptic_json(
    json_file: str, image_dir: str, gt_dir: str, semseg_dir: str | None, meta: Mapping[str, Any]
) -> Records:
    """Load records with segments; see `load_with_metadata`."""
    return load_with_metadata(json_file, image_dir, gt_dir, semseg_dir, meta, LAYOUT)


def register_mapillary_vistas_panoptic(
    name: str,
    metadata: Mapping[str, Any],
    image_root: str,
    panoptic_root: str,
    semantic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
) -> None:
    """Register a dataset in the form of Mapillary Vistas panoptic; see `register_with_metadata`."""
    register_with_metadata(
        name,
        metadata,
        LAYOUT,
        "mapillary_vistas_panoptic_seg",
        VOID,
        image_root=image_root,
        panoptic_root=panoptic_root,
        sem_seg_root=semantic_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
    )


def register_all_mapillary_vistas_panoptic(root: str) -> None:
    """Register the datasets below `root`; the semantic and instance ones too."""
    register_mapillary(root)
