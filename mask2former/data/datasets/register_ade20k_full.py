"""ADE20K with 847 classes under the names that programs import; see `ade20k`."""

from __future__ import annotations

from typing import Any

from .ade20k import register_ade20k
from .categories import class_table, column, index_by_id

__all__ = ["ADE20K_SEM_SEG_FULL_CATEGORIES", "register_all_ade20k_full"]

# "id" is the class index, as "trainId": the numbers that ADE20K itself gives its classes are in no file here.
ADE20K_SEM_SEG_FULL_CATEGORIES: list[dict[str, Any]] = [
    {**entry, "trainId": index} for index, entry in enumerate(class_table("ade20k_full"))
]


def _get_ade20k_full_meta() -> dict[str, Any]:
    """Return the class names, and the map from the values of label maps to class indices."""
    return {
        "stuff_classes": column(ADE20K_SEM_SEG_FULL_CATEGORIES, "name"),
        "stuff_dataset_id_to_contiguous_id": index_by_id(ADE20K_SEM_SEG_FULL_CATEGORIES),
    }


def register_all_ade20k_full(root: str) -> None:
    """Register the datasets below `root`; those of the other ADE20K families too."""
    register_ade20k(root)
