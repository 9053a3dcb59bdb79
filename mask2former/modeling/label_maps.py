"""The best class of each pixel, from scores of all classes or from the masks that they are sums of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..structures.classes import VOID

_PIECE = 1 << 15  # pixels: their scores for one class, 128 KiB, fit in the cache


def label_type(classes: int) -> torch.dtype:
    """Return the type of a map of class indices: uint8 where `VOID` remains free, else int32."""
    return torch.uint8 if classes <= VOID else torch.int32


def first_highest(scores: Tensor) -> Tensor:
    """Return the class of each pixel, (K, h, w) scores -> (h, w), equal to `scores.argmax(dim=0)`.

    On a CPU `argmax` would dominate the time of semantic evaluation, so classes are compared there one by one, in
    pieces that stay in the cache.
    """
    simple = scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64) and len(scores) <= 256
    if not simple:
        return scores.argmax(dim=0).to(torch.int16 if len(scores) <= 1 << 15 else torch.int64)
    values = scores.detach().numpy().reshape(len(scores), -1)
    classes = np.zeros(values.shape[1], dtype=np.uint8)
    for start in range(0, values.shape[1], _PIECE):
        piece, selected = values[:, start : start + _PIECE], classes[start : start + _PIECE]
        best = piece[0].copy()
        higher = np.empty(len(best), dtype=bool)
        marks = higher.view(np.uint8)
        for label in range(1, len(piece)):
            np.greater(piece[label], best, out=higher)
            np.multiply(marks, np.uint8(label), out=marks)
            np.maximum(selected, marks, out=selected)
            np.maximum(best, piece[label], out=best)
        if np.isnan(best).any():  # argmax takes the first NaN
            selected[:] = piece.argmax(axis=0)
    return torch.from_numpy(classes.reshape(scores.shape[1:]))


def labels_of_masks(scores: Tensor, mask_logits: Tensor) -> Tensor:
    """Return the class with the largest sum over queries of class score x mask probability, some pixels at a time.

    Args:
        scores: (Q, K), after the softmax.
        mask_logits: (Q, h, w), before the sigmoid.

    Returns:
        (h, w) of `label_type`.
    """
    masks, transposed = mask_logits.flatten(1), scores.T
    labels = torch.empty(masks.shape[1], dtype=label_type(scores.shape[1]), device=masks.device)
    for start in range(0, len(labels), _PIECE):
        piece = masks[:, start : start + _PIECE].sigmoid()
        sums = piece.new_zeros(len(transposed), piece.shape[1]).addmm_(transposed, piece)  # in fp32 under autocast too
        labels[start : start + _PIECE] = first_highest(sums[:, :, None])[:, 0]
    return labels.view(mask_logits.shape[1:])
