"""Two label maps as runs of equal pairs: segments are smooth, so a hundredth of the pixels tells everything."""

from __future__ import annotations

import numpy as np


def joint_runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs, along the rows, of pixels that agree in both maps.

    Args:
        first, second: (h, w) integers, of the same shape.

    Returns:
        (M,) int64 values of `first`, of `second`, and numbers of pixels, which add up to h * w.
    """
    one, other = np.ascontiguousarray(first).ravel(), np.ascontiguousarray(second).ravel()
    changed = one[1:] != one[:-1]
    changed |= other[1:] != other[:-1]
    starts = np.concatenate([np.arange(min(1, one.size)), np.flatnonzero(changed) + 1])
    lengths = np.diff(starts, append=one.size)
    return one[starts].astype(np.int64), other[starts].astype(np.int64), lengths


def count_pairs(rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of each pair of labels, `shape` int64: rows and columns (M,) are labels of runs, from 0."""
    height, width = shape
    counts = np.bincount(rows * width + columns, weights=lengths, minlength=height * width)
    return counts.astype(np.int64).reshape(shape)  # sums of whole numbers are exact below 2^53
