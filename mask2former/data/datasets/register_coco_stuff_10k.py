"""COCO-Stuff 10k (171 classes) under the names that programs import; see `coco`."""

from __future__ import annotations

from typing import Any

from .categories import class_table, column, index_by_id
from .coco import register_coco_stuff

__all__ = ["COCO_CATEGORIES", "register_all_coco_stuff_10k"]

COCO_CATEGORIES: list[dict[str, Any]] = [dict(entry) for entry in class_table("coco_stuff_10k")]


def _get_coco_stuff_meta() -> dict[str, Any]:
    """Return the class names, and the map from COCO's ids to class indices."""
    return {
        "stuff_dataset_id_to_contiguous_id": index_by_id(COCO_CATEGORIES),
        "stuff_classes": column(COCO_CATEGORIES, "name"),
    }


def register_all_coco_stuff_10k(root: str) -> None:
    """Register the datasets below `root`."""
    register_coco_stuff(root)
