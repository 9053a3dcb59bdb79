"""Masks to COCO run-length encoding, many at a time.

COCO counts runs down the columns. A mask batch transposed to (N, w, h) in C order is the same memory as
(h, w, N) in Fortran order, which is what pycocotools wants: one transposition (on the GPU if the masks are
there), one copy to the host, one call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

Rle = dict[str, Any]  # {"size": [h, w], "counts": str}

_CHUNK_PIXELS = 1 << 26  # 64 MiB of uint8 at a time bounds memory for hundreds of masks of large pictures


def _encode_columns(columns: np.ndarray) -> list[Rle]:
    """Encode masks given column-major: columns (N, w, h) uint8, C-contiguous."""
    rles = mask_util.encode(columns.transpose(2, 1, 0))
    for rle in rles:
        rle["counts"] = rle["counts"].decode("ascii")  # JSON has no bytes
    return rles


def encode_masks(masks: Tensor) -> list[Rle]:
    """Encode binary masks.

    Args:
        masks: (N, h, w), on any device; bool, or numbers of which those above 0.5 count as inside.

    Returns:
        N dicts `{"size": [h, w], "counts": str}`, ready for JSON and for pycocotools.
    """
    if masks.dim() != 3:
        raise ValueError(f"masks must be (N, h, w), got shape {tuple(masks.shape)}")
    if masks.dtype != torch.bool:
        masks = masks > 0.5
    step = max(1, _CHUNK_PIXELS // max(1, masks.shape[1] * masks.shape[2]))
    rles: list[Rle] = []
    for chunk in masks.split(step) if len(masks) else ():
        columns = chunk.transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy()
        rles.extend(_encode_columns(columns))
    return rles


def encode_label_map(label_map: np.ndarray) -> dict[int, Rle]:
    """Encode each region of equal label of label_map (h, w), integers. Returns label -> RLE, by rising "
    "label."""
    columns = np.ascontiguousarray(label_map.T)
    labels = np.unique(columns)
    step = max(1, _CHUNK_PIXELS // max(1, columns.size))
    encoded: dict[int, Rle] = {}
    for start in range(0, len(labels), step):
        part = labels[start : start + step]
        regions = (columns[None] == part[:, None, None]).view(np.uint8)
        encoded.update(zip(part.tolist(), _encode_columns(regions), strict=True))
    return encoded
