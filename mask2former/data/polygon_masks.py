"""Masks of polygons, all objects of an image in one call of a compiled kernel where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .. import ops
from ..structures.masks import EMPTY_PATCH, Patch, clip_patch, polygons_to_patches

assert ops  # loads the compiled kernels


def fill_polygons(
    polygons: Sequence[np.ndarray],
    counts: Sequence[int],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
) -> list[Patch]:
    """Rasterize polygons as pycocotools does; the polygons of one object are merged.

    Args:
        polygons: those of all objects, one object after the other, float64 (P, 2) with P >= 3, (x, y) in pixels.
        counts: how many polygons each object has; one without polygons has an empty mask.
        size: height and width of the canvas.
        window: rows [top, bottom) and columns [left, right) of the canvas; what lies outside is removed.

    Returns:
        The mask of each object in its bounding box.
    """
    if polygons and hasattr(torch.ops.mask2former, "fill_polygons"):
        points = torch.from_numpy(np.concatenate(polygons))
        lengths = [len(polygon) for polygon in polygons]
        flat, boxes = torch.ops.mask2former.fill_polygons(points, lengths, list(counts), list(size), list(window))
        bits = flat.numpy().view(bool)
        return [
            Patch(top, left, bits[start : start + height * width].reshape(height, width)) if height else EMPTY_PATCH
            for start, top, left, height, width in boxes.tolist()
        ]
    remaining = iter(polygons)
    patches = polygons_to_patches([[next(remaining) for _ in range(count)] for count in counts], size)
    return [clip_patch(patch, *window) for patch in patches]
