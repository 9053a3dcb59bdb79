"""ADE20K instances (100 classes) under the names that programs import; see `ade20k`."""

from __future__ import annotations

from typing import Any

from .ade20k import register_ade20k
from .categories import class_table, column, index_by_id

__all__ = ["ADE_CATEGORIES", "register_all_ade20k_instance"]

ADE_CATEGORIES: list[dict[str, Any]] = [
    {"id": entry["id"], "name": entry["name"]} for entry in class_table("ade20k_instance")
]


def _get_ade_instances_meta() -> dict[str, Any]:
    """Return the class names, and the map from the ids of the JSON file to class indices."""
    return {
        "thing_dataset_id_to_contiguous_id": index_by_id(ADE_CATEGORIES),
        "thing_classes": column(ADE_CATEGORIES, "name"),
    }


def register_all_ade20k_instance(root: str) -> None:
    """Register the datasets below `root`; those of the other ADE20K families too."""
    register_ade20k(root)
