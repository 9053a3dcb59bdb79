"""COCO panoptic with label maps under the names that programs import; see `coco`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .catalog import Records
from .coco import LAYOUT, coco_categories, register_coco
from .panoptic_forms import load_with_metadata, register_with_metadata, split_metadata

__all__ = [
    "COCO_CATEGORIES",
    "get_metadata",
    "load_coco_panoptic_json",
    "register_all_coco_panoptic_annos_sem_seg",
    "register_coco_panoptic_annos_sem_seg",
]

COCO_CATEGORIES: list[dict[str, Any]] = [dict(entry) for entry in coco_categories()]


def get_metadata() -> dict[str, Any]:
    """Return class names, colors and id maps; `thing_classes` lists the 80 things, `stuff_classes` all 133."""
    return split_metadata(coco_categories(), only_things_among_things=True)


def load_coco_panoptic_json(
    json_file: str, image_dir: str, gt_dir: str, semseg_dir: str | None, meta: Mapping[str, Any]
) -> Records:
    """Load records with segments; see `load_with_metadata`."""
    return load_with_metadata(json_file, image_dir, gt_dir, semseg_dir, meta, LAYOUT)


def register_coco_panoptic_annos_sem_seg(
    name: str,
    metadata: Mapping[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
) -> None:
    """Register `name` + "_with_sem_seg"; see `register_with_metadata`.

    The dataset `name` itself stays as it is: those of COCO have the 80 thing classes from the start.
    """
    register_with_metadata(
        f"{name}_with_sem_seg",
        metadata,
        LAYOUT,
        "coco_panoptic_seg",
        image_root=image_root,
        panoptic_root=panoptic_root,
        sem_seg_root=sem_seg_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
    )


def register_all_coco_panoptic_annos_sem_seg(root: str) -> None:
    """Register the datasets below `root`; all others of COCO too."""
    register_coco(root)
