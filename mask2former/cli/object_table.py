"""The rows of objects.csv: one for each object, segment or class of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

from ..results import Result
from ..structures.task import Task

COLUMNS = (
    *("image", "id", "class", "score", "area", "centroid_x", "centroid_y"),
    *("box_x", "box_y", "box_width", "box_height"),
)


def object_rows(result: Result, task: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of an image, with at least the columns `COLUMNS`; lengths in pixels of the image.

    `id` is the object's value in the label map. A centroid is the mean of the pixel centers, which have whole numbers.
    """
    if hasattr(result, "to_rows"):
        return list(result.to_rows(task=task, image=name))
    rows = []
    for record, described in zip(result.to_coco(task=task), _described(result, task), strict=True):
        number, label, centroid = described
        score = record["score"] if task != Task.SEMANTIC else None
        values = (name, number, label, score, record["area"], *centroid, *record["bbox"])
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _described(result: Result, task: str) -> Iterator[tuple[int, str, tuple[float | None, float | None]]]:
    """Yield id, class name and centroid (x, y) of each object."""
    if task == Task.INSTANCE:
        assert result.instances is not None
        for number, (patch, name) in enumerate(zip(result.instances.patches, result.instances.names), start=1):
            y, x = np.argwhere(patch.bits).mean(axis=0) if np.any(patch.bits) else (np.nan, np.nan)
            yield number, name, _point(x + patch.left, y + patch.top)
        return
    if task == Task.PANOPTIC:
        assert result.panoptic is not None
        label_map = result.panoptic.map
        keys = [(segment.id, segment.id, segment.name) for segment in result.panoptic.segments]
    else:
        assert result.semantic is not None
        label_map = result.semantic
        keys = [(k, k + 1, result.classes.names[k]) for k in result.present_classes()]
    centers = ndimage.center_of_mass(np.ones_like(label_map), label_map, [key for key, _, _ in keys]) if keys else []
    for (_, number, name), (y, x) in zip(keys, centers, strict=True):
        yield number, name, _point(x, y)


def _point(x: float, y: float) -> tuple[float | None, float | None]:
    """Return a centroid; None of an object without pixels."""
    return (None, None) if np.isnan(x) or np.isnan(y) else (float(x), float(y))
