"""Two label maps as runs of equal pairs: segments are smooth, so there are far fewer runs than pixels."""

from __future__ import annotations

import numpy as np


def joint_runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs of pixels, in row-major order, that are constant in both maps.

    Args:
        first, second: (h, w) integers, of the same shape.

    Returns:
        (M,) int64 values of `first`, values of `second`, and numbers of pixels, which sum to h * w.
    """
    labels_a, labels_b = np.ascontiguousarray(first).ravel(), np.ascontiguousarray(second).ravel()
    changed = labels_a[1:] != labels_a[:-1]
    changed |= labels_b[1:] != labels_b[:-1]
    starts = np.concatenate([np.arange(min(1, labels_a.size)), np.flatnonzero(changed) + 1])
    lengths = np.diff(starts, append=labels_a.size)
    return labels_a[starts].astype(np.int64), labels_b[starts].astype(np.int64), lengths


def count_pairs(rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Count the pixels of each pair of labels, int64 of `shape`; rows and columns (M,) are labels of runs, from 0."""
    height, width = shape
    counts = np.bincount(rows * width + columns, weights=lengths, minlength=height * width)
    return counts.astype(np.int64).reshape(shape)  # float64 sums of integers are exact below 2^53
