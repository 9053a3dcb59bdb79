"""Deformable attention as a function of sampling locations and weights, by the names of Deformable DETR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .....ops import ms_deform_attn
from .....ops.reference import ms_deform_attn_reference

# (H, W) of each level: Python integers, or an integer tensor (L, 2).
LevelSizes = Sequence[tuple[int, int]] | Tensor


def level_sizes(spatial_shapes: LevelSizes) -> list[tuple[int, int]]:
    """Return (H, W) of each level as integers; a tensor on a GPU is copied, which waits for the GPU."""
    sizes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    return [(height, width) for height, width in sizes]


class MSDeformAttnFunction:
    """Deformable attention on the back end of the device, differentiable."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: LevelSizes,
        value_level_start_index: Tensor | None,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """Sample the levels of `value` and sum the samples with their weights.

        Args:
            value: (B, S, heads, D), the L levels one after another.
            value_spatial_shapes: (H, W) of each level.
            value_level_start_index: ignored: each level starts where the one before it ends.
            sampling_locations: (B, N, heads, L, P, 2), (x, y) in [0, 1] of each level.
            attention_weights: (B, N, heads, L, P), after the softmax.
            im2col_step: ignored: images are not split into groups.

        Returns:
            (B, N, heads * D).
        """
        if sampling_locations.dtype in (torch.float16, torch.bfloat16):
            sampling_locations = sampling_locations.float()
        return ms_deform_attn(value, level_sizes(value_spatial_shapes), sampling_locations, attention_weights)


def ms_deform_attn_core_pytorch(
    value: Tensor, value_spatial_shapes: LevelSizes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Compute `MSDeformAttnFunction.apply` in PyTorch, on any device."""
    return ms_deform_attn_reference(value, level_sizes(value_spatial_shapes), sampling_locations, attention_weights)
