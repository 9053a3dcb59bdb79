"""ADE20K panoptic (150 classes) under the names that programs import; see `ade20k`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ade20k import LAYOUT, register_ade20k
from .catalog import Records
from .categories import class_table, column
from .panoptic_forms import load_with_metadata, register_with_metadata, split_metadata

__all__ = [
    "ADE20K_150_CATEGORIES",
    "ADE20k_COLORS",
    "get_metadata",
    "load_ade20k_panoptic_json",
    "register_ade20k_panoptic",
    "register_all_ade20k_panoptic",
]

ADE20K_150_CATEGORIES: list[dict[str, Any]] = [dict(entry) for entry in class_table("ade20k")]
ADE20k_COLORS: list[list[int]] = column(ADE20K_150_CATEGORIES, "color")


def get_metadata() -> dict[str, Any]:
    """Return class names, colors and id maps; `thing_classes` lists the 100 things, `stuff_classes` all 150."""
    return split_metadata(class_table("ade20k"), only_things_among_things=True)


def load_ade20k_panoptic_json(
    json_file: str, image_dir: str, gt_dir: str, semseg_dir: str | None, meta: Mapping[str, Any]
) -> Records:
    """Load records with segments; see `load_with_metadata`."""
    return load_with_metadata(json_file, image_dir, gt_dir, semseg_dir, meta, LAYOUT)


def register_ade20k_panoptic(
    name: str,
    metadata: Mapping[str, Any],
    image_root: str,
    panoptic_root: str,
    semantic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
) -> None:
    """Register a dataset in the form of ADE20K panoptic; see `register_with_metadata`."""
    register_with_metadata(
        name,
        metadata,
        LAYOUT,
        "ade20k_panoptic_seg",
        image_root=image_root,
        panoptic_root=panoptic_root,
        sem_seg_root=semantic_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
    )


def register_all_ade20k_panoptic(root: str) -> None:
    """Register the datasets below `root`; those of the other ADE20K families too."""
    register_ade20k(root)
