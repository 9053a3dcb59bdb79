"""Colors that stay with the objects of a video whose frames are segmented one by one."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..results import Result


class TrackColors:
    """Matcher that keeps the color of an object from frame to frame, by ids for `draw(color_ids=...)`.

    Objects of two frames are matched if they have the same class and their boxes overlap (IoU >= 0.3).
    """

    def __init__(self) -> None:
        self._boxes, self._labels, self._ids = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)
        self._next = 0

    def update(self, result: Result) -> np.ndarray:
        """Match the N instances of the next frame; return their ids (N,)."""
        assert result.instances is not None
        boxes, labels = result.instances.boxes, result.instances.labels
        overlap = _box_iou(boxes, self._boxes) * (labels[:, None] == self._labels[None])
        ids = np.full(len(boxes), -1)
        for new, old in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[new, old] >= 0.3:
                ids[new] = self._ids[old]
        unmatched = np.flatnonzero(ids < 0)
        ids[unmatched] = self._next + np.arange(len(unmatched))
        self._next += len(unmatched)
        self._boxes, self._labels, self._ids = boxes, labels, ids
        return ids


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the IoU (N, M) of XYXY boxes (N, 4) and (M, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    return intersection / np.maximum(areas[0][:, None] + areas[1][None] - intersection, 1e-9)
