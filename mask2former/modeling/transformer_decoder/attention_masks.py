"""Masks of masked attention (arXiv 2112.01527, equation 2): what they are computed from, and who takes them how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.overrides import as_written
from ..outputs import mask_logits
from .layers import Attention, CrossAttentionLayer


def resized(mask_features: Tensor, size: Sequence[int]) -> Tensor:
    """Resize mask features (B * T, C, H4, W4) to a level.

    Mask logits are linear in the mask features, so the features are resized once per level instead of the logits once
    per layer.
    """
    with torch.no_grad():
        return F.interpolate(mask_features.float(), tuple(size), mode="bilinear", align_corners=False)


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
