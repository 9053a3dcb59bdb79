"""Mapillary Vistas semantic (65 classes) under the names that programs import; see `mapillary`."""

from __future__ import annotations

from typing import Any

from .categories import class_table, column
from .mapillary import register_mapillary

__all__ = ["MAPILLARY_VISTAS_SEM_SEG_CATEGORIES", "register_all_mapillary_vistas"]

# The last value of the label maps, which is not a class.
_UNLABELED = {"readable": "Unlabeled", "color": [0, 0, 0], "instances": False, "evaluate": False}

MAPILLARY_VISTAS_SEM_SEG_CATEGORIES: list[dict[str, Any]] = [
    {"readable": entry["name"], "color": entry["color"], "instances": bool(entry["isthing"]), "evaluate": True}
    for entry in class_table("mapillary_vistas")
] + [_UNLABELED]


def _get_mapillary_vistas_meta() -> dict[str, Any]:
    """Return names and colors of the 65 classes."""
    classes = [entry for entry in MAPILLARY_VISTAS_SEM_SEG_CATEGORIES if entry["evaluate"]]
    return {"stuff_classes": column(classes, "readable"), "stuff_colors": column(classes, "color")}


def register_all_mapillary_vistas(root: str) -> None:
    """Register the datasets below `root`; the panoptic and instance ones too."""
    register_mapillary(root)
