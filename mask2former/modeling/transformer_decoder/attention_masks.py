"""Masks of masked attention (arXiv 2112.01527, equation 2): what they are computed from, and who takes them how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.overrides import as_written
from ..half_products import are_halves, in_two, product, twice
from ..outputs import mask_logits
from .layers import Attention, CrossAttentionLayer


def resized(mask_features: Tensor, size: Sequence[int]) -> Tensor:
    """Resize mask features (B * T, C, H4, W4) to a level.

    Mask logits are linear in the mask features, so the features are resized once per level instead of the logits once
    per layer.
    """
    with torch.no_grad():
        if mask_features.is_cuda and not torch.compiler.is_compiling() and _evenly(mask_features.shape[-2:], size):
            return means_of_centers(mask_features.float(), size)
        return F.interpolate(mask_features.float(), tuple(size), mode="bilinear", align_corners=False)


def _evenly(old: Sequence[int], new: Sequence[int]) -> bool:
    return all(a % (2 * b) == 0 for a, b in zip(old, new, strict=True))


def means_of_centers(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (..., H, W) shrunk to `size`, (H, W) over even numbers: means of the middle 2 x 2 pixels.

    It is what bilinear interpolation computes, up to rounding. PyTorch's kernel for CUDA has a thread for each pixel of
    the result, which goes through all images and channels one after another: small levels leave a GPU idle.
    """
    down, right = (old // new for old, new in zip(maps.shape[-2:], size, strict=True))
    top, left = down // 2 - 1, right // 2 - 1
    upper, lower = maps[..., top::down, :], maps[..., top + 1 :: down, :]
    columns = [row[..., first::right] for row in (upper, lower) for first in (left, left + 1)]
    return (columns[0] + columns[1]).add_(columns[2] + columns[3]).mul_(0.25)


class LevelMasks:
    """Mask logits at the size of a level, without gradients; masks of attention are made of them.

    Args:
        mask_features: (B * T, C, H4, W4).
        size: of the level, (H, W).
        frames: T.
    """

    def __init__(self, mask_features: Tensor, size: Sequence[int], frames: int) -> None:
        self._features, self._size, self._frames = mask_features, size, frames
        # One of both: each takes as much memory as the other.
        self._maps: Tensor | None = None
        self._halves: Tensor | None = None
        if are_halves(mask_features):
            # Resized bf16 numbers need more bits than they had.
            self._halves = _tokens(in_two(resized(mask_features, size), 1), frames)
        else:
            self._maps = resized(mask_features, size).unflatten(0, (-1, frames))

    def logits(self, embeds: Tensor) -> Tensor:
        """Return fp32 (B, Q, T * H * W) for query embeddings (B, Q, C)."""
        with torch.no_grad():
            if self._halves is not None and are_halves(embeds):
                return product(twice(embeds, 2), self._halves)
            if self._maps is None:  # embeddings of another type than the features
                self._maps = resized(self._features, self._size).unflatten(0, (-1, self._frames))
            return mask_logits(embeds, self._maps).flatten(2)


def _tokens(maps: Tensor, frames: int) -> Tensor:
    """Return maps (B * T, C, H, W) as (B, C, T * H * W)."""
    clips = maps.unflatten(0, (-1, frames)).transpose(1, 2)
    return clips.reshape(*clips.shape[:2], -1)


def takes_one_mask_for_all_heads(layer: Any) -> bool:
    """Return whether a layer and its attention are our own: those of other projects get a mask for each head."""
    return as_written(layer, CrossAttentionLayer, "forward", "forward_post", "forward_pre") and as_written(
        layer.multihead_attn, Attention, "forward"
    )


@torch.no_grad()
def attention_mask(embeds: Tensor, features: Tensor) -> Tensor:
    """Compute where each query does not attend (equation 2): outside its mask.

    Args:
        embeds: (B, Q, C); features: (B, T, C, H, W) at the level's size.

    Returns:
        bool (B, Q, T * H * W), True where attention is blocked; all of it for an empty mask.
    """
    return mask_logits(embeds, features).flatten(2).sigmoid() < 0.5
