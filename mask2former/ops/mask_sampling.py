"""Reading of many masks at points: `torch.ops.mask2former.sample_masks`, its code in PyTorch, and its entry.

Registration is as in `registration.py`: the op exists with or without the compiled extension, and once in a process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ms_deform_attn import backend
from .registration import Op, register_ops

_SCHEMA = (
    "sample_masks(Tensor data, Tensor table, Tensor index, Tensor points, Tensor? point_rows, SymInt height, "
    "SymInt width) -> Tensor"
)


def sample_masks(
    data: Tensor,
    table: Tensor,
    index: Tensor,
    points: Tensor,
    size: tuple[int, int],
    point_rows: Tensor | None = None,
) -> Tensor:
    """Read masks bilinearly at points of the image in whose upper left corner they lie; outside they are zero.

    Args:
        data: (sum of H * W,) uint8 or fp32, the masks one after another in row-major order.
        table: (3, masks) int64, start in `data`, height and width of each mask.
        index: (M,) int64 indices of masks.
        points: (M, P, 2), or (1, P, 2) shared by all, or (G, P, 2) with `point_rows`: (x, y) in [0, 1].
        size: (H, W) of the image.
        point_rows: (M,) int64 row of `points` for each of `index`.

    Returns:
        (M, P) float32.
    """
    if compiled(data.device.type):
        if not torch.compiler.is_compiling() and points.data_ptr() % 8:
            points = points.clone()  # x and y are read at once
        return torch.ops.mask2former.sample_masks(data, table, index, points, point_rows, *size)
    return sample_masks_reference(data, table, index, points, point_rows, *size)


def compiled(device_type: str) -> bool:
    """Return whether a compiled kernel reads masks on `device_type` ("cuda")."""
    key = device_type.upper()
    return backend(device_type) == "compiled" and torch._C._dispatch_has_kernel_for_dispatch_key(
        "mask2former::sample_masks", key
    )


def sample_masks_reference(
    data: Tensor, table: Tensor, index: Tensor, points: Tensor, point_rows: Tensor | None, height: int, width: int
) -> Tensor:
    """Read masks as `sample_masks` does, in PyTorch."""
    if point_rows is not None:
        points = points[point_rows]
    start, mask_height, mask_width = table[:, index, None]
    x = points[..., 0].float() * width - 0.5
    y = points[..., 1].float() * height - 0.5
    left, top = x.floor(), y.floor()
    dx, dy = x - left, y - top
    out = torch.zeros((), device=points.device)
    for row, row_weight in ((top.long(), 1 - dy), (top.long() + 1, dy)):
        for column, column_weight in ((left.long(), 1 - dx), (left.long() + 1, dx)):
            inside = (row >= 0) & (row < mask_height) & (column >= 0) & (column < mask_width)
            offset = start + row * mask_width + column
            value = data[torch.where(inside, offset, 0)] if len(data) else torch.zeros_like(offset)
            # Not a product with `inside`: the value read instead may not be finite.
            out = out + row_weight * column_weight * value.where(inside, 0)
    return out


def _fake(
    data: Tensor, table: Tensor, index: Tensor, points: Tensor, point_rows: Tensor | None, height: int, width: int
) -> Tensor:
    return points.new_empty(index.shape[0], points.shape[1], dtype=torch.float32)


register_ops(Op(_SCHEMA, sample_masks_reference, _fake))
