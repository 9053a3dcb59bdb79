"""Segment ids as colors, as in the PNG files of the COCO panoptic format: id = R + 256 G + 65536 B."""

from __future__ import annotations

import numpy as np

MAX_ID = 256**3 - 1


def rgb_to_id(rgb: np.ndarray) -> np.ndarray:
    """Convert colors to segment ids.

    Args:
        rgb: uint8 (..., 3).

    Returns:
        int32 (...), in [0, MAX_ID].

    Raises:
        ValueError: wrong dtype or number of channels.
    """
    if rgb.dtype != np.uint8 or rgb.ndim == 0 or rgb.shape[-1] != 3:
        raise ValueError(f"colors must be uint8 (..., 3), got {rgb.dtype} {rgb.shape}")
    # The bytes of an id are those of its color and a zero. Channel by channel: NumPy is slow on inner axes of 3.
    words = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    for channel in range(3):
        words[..., channel] = rgb[..., channel]
    return np.asarray(words.view("<i4")[..., 0], np.int32)


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Convert segment ids to colors, the inverse of `rgb_to_id`.

    Args:
        ids: integers (...), in [0, MAX_ID].

    Returns:
        uint8 (..., 3), contiguous.

    Raises:
        ValueError: not integers, or an id has no color.
    """
    if ids.dtype.kind not in "iu":
        raise ValueError(f"segment ids must be integers, got {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() > MAX_ID):
        raise ValueError(f"segment ids must be in [0, {MAX_ID}], got {ids.min()} to {ids.max()}")
    words = np.ascontiguousarray(ids, "<u4").reshape(*ids.shape, 1).view(np.uint8)
    return np.stack([words[..., channel] for channel in range(3)], axis=-1)
