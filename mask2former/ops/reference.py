"""Multi-scale deformable attention in plain PyTorch: exact, differentiable, exportable, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling: Tensor,
    attention: Tensor,
    reference_points: Tensor | None = None,
) -> Tensor:
    """Compute equation 3 of Deformable DETR by one `grid_sample` per level; arguments as in `ops.ms_deform_attn`."""
    if reference_points is not None:
        sampling, attention = from_projections(spatial_shapes, sampling, attention, reference_points)
    batch, _, heads, dim = value.shape
    queries = sampling.shape[1]
    # Heads are part of the batch, because each head samples different channels at different points.
    grids = (2 * sampling - 1).transpose(1, 2).flatten(0, 1)  # (B heads, N, L, P, 2)
    weights = attention.transpose(1, 2).flatten(0, 1).to(value.dtype)  # (B heads, N, L, P)
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B heads, D, S)
    out = value.new_zeros(batch * heads, dim, queries)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        level_map = maps[:, :, start : start + height * width].reshape(batch * heads, dim, height, width)
        start += height * width
        sampled = _sample(level_map, grids[:, :, level])  # (B heads, D, N, P)
        out = out + (sampled * weights[:, None, :, level]).sum(-1)
    return out.view(batch, heads * dim, queries).transpose(1, 2)


def from_projections(
    spatial_shapes: Sequence[tuple[int, int]], offsets: Tensor, logits: Tensor, reference_points: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute sampling locations (B, N, heads, L, P, 2) and softmax weights (B, N, heads, L, P) of raw projections.

    Both are fp32 (fp64 for fp64 projections), because a bf16 coordinate is off by a quarter of a pixel at width 128.
    """
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    # Built from scalars: a tensor from a Python list would be a synchronizing copy.
    sizes = torch.stack(
        [torch.full((), float(n), dtype=dtype, device=offsets.device) for h, w in spatial_shapes for n in (w, h)]
    )
    centers = reference_points.to(dtype)[:, :, None, :, None]  # (B or 1, N, 1, L or 1, 1, 2)
    locations = centers + offsets.to(dtype) / sizes.view(-1, 1, 2)
    weights = logits.to(dtype).flatten(-2).softmax(-1).view(logits.shape)
    return locations, weights


def _sample(level_map: Tensor, grid: Tensor) -> Tensor:
    """Sample bilinearly with zeros outside; coordinates stay fp32 even if the values are half precision."""
    if level_map.dtype in (torch.float16, torch.bfloat16):
        return F.grid_sample(level_map.float(), grid.float(), align_corners=False).to(level_map.dtype)
    return F.grid_sample(level_map, grid.to(level_map.dtype), align_corners=False)
