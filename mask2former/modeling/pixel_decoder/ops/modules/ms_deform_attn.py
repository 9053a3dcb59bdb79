"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1 and appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .....ops import ms_deform_attn
from .....utils.overrides import extensible
from ..functions.ms_deform_attn_func import LevelSizes, MSDeformAttnFunction, level_sizes


@extensible
class MSDeformAttn(nn.Module):
    """Attention to the tokens of all levels, each query sampling P points per level and head.

    Args:
        d_model: C.
        n_levels: L.
        n_heads: must divide `d_model`.
        n_points: P.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}")
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Initialize head h to sample in direction h, point p at distance p + 1."""
        angle = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().max(-1, keepdim=True).values  # on the unit square
        distance = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        grid = direction[:, None, None] * distance[:, None]  # (heads, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.n_levels, -1, -1).flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: LevelSizes,
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from each query to its sampling points.

        Args:
            query: (B, N, C), tokens with their position encoding.
            reference_points: (B or 1, N, L or 1, 2), (x, y) in [0, 1]; or (B or 1, N, L or 1, 4), boxes
                (x, y, width, height) in [0, 1], whose size scales the offsets.
            input_flatten: (B, S, C), the levels one after another.
            input_spatial_shapes: (H, W) of each level, as integers or as a tensor (L, 2). Integers need no copy from
                the device.
            input_level_start_index: ignored: each level starts where the one before it ends.
            input_padding_mask: bool (B, S), True for tokens that count as zero.

        Returns:
            (B, N, C).
        """
        if reference_points.shape[-1] not in (2, 4):
            raise ValueError(f"reference_points must end in 2 or 4 numbers, got {tuple(reference_points.shape)}")
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.n_heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (self.n_heads, self.n_levels, self.n_points, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.n_heads, self.n_levels, self.n_points))
        sizes = level_sizes(input_spatial_shapes)
        if query.dtype == torch.float64:  # of a model in double precision; the op knows no mixture with it
            reference_points = reference_points.double()
        if reference_points.shape[-1] == 2:
            return self.output_proj(ms_deform_attn(value, sizes, offsets, logits, reference_points))
        center, extent = reference_points[:, :, None, :, None].split(2, dim=-1)  # (B or 1, N, 1, L or 1, 1, 2)
        locations = center + offsets.to(center.dtype) * extent / (2 * self.n_points)
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        return self.output_proj(MSDeformAttnFunction.apply(value, sizes, None, locations, weights))
