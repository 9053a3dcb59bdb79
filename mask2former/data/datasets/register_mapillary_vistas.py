"""Mapillary Vistas semantic (65 classes) under the names that programs import; see `mapillary`."""

from __future__ import annotations

from typing import Any

from .categories import class_table, column
from .mapillary import register_mapillary

__all__ = ["MAPILLARY_VISTAS_SEM_SEG_CATEGORIES", "register_all_mapillary_vistas"]

MAPILLARY_VISTAS_SEM_SEG_CATEGORIES: list[dict[str, Any]] = [
    {"readable": entry["name"], "color": entry["color"], "instances": bool(entry["isthing"])}
    for entry in class_table("mapillary_vistas")
]


def _get_mapillary_vistas_meta() -> dict[str, Any]:
    """Return names and colors of the classes, without the last value of the label maps, "Unlabeled"."""
    return {
        "stuff_classes": column(MAPILLARY_VISTAS_SEM_SEG_CATEGORIES, "readable"),
        "stuff_colors": column(MAPILLARY_VISTAS_SEM_SEG_CATEGORIES, "color"),
    }


def register_all_mapillary_vistas(root: str) -> None:
    """Register the datasets below `root`; the panoptic and instance ones too."""
    register_mapillary(root)
