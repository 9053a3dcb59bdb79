"""Objects of the ADE20K instance challenge (annotations_instance)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import BadRecordError
from ..datasets.categories import class_table
from ..image_io import read_panoptic_png

_DIVISOR = 256


def read_objects(path: Path) -> tuple[np.ndarray, dict[int, int]]:
    """Read the objects of one picture.

    Args:
        path: PNG with the class, 1-100, in the red channel and the number of the object, from 1, in the green one.

    Returns:
        int32 (H, W) with a key for each object, which grows with its number; and for each key the class index among
        the 150 of SceneParse150. Other values of the map are no objects.

    Raises:
        BadRecordError: missing, broken, no RGB picture, or a class is unknown.
    """
    keys = read_panoptic_png(str(path)) % _DIVISOR**2  # class + 256 x number
    classes = {entry["instance_id"]: entry["id"] for entry in class_table("ade20k_instance")}
    objects = {}
    for key in np.unique(keys[keys >= _DIVISOR]).tolist():
        number, value = divmod(key, _DIVISOR)
        if value not in classes:
            raise BadRecordError(path, f"class {value} of object {number} is none of 1-{len(classes)}")
        objects[key] = classes[value]
    return keys, objects
