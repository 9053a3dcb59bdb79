"""Bilinear enlargement as one op that PyTorch's compiler leaves whole.

The compiler takes `F.interpolate` apart, and its gradient becomes scattered additions to memory, one for each pixel and
neighbor, which take longer than PyTorch's own kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .registration import Op, register_ops
from .tracing import is_exporting

_SCHEMAS = (
    "enlarge(Tensor maps, SymInt[] size) -> Tensor",
    "enlarge_backward(Tensor grad, SymInt[] shape) -> Tensor",
)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, C, H, W) to `size`, (H', W'), as `F.interpolate` does (bilinear, pixels have areas)."""
    # Gradients of PyTorch's kernel depend on the order of its additions. Exported programs have PyTorch's own ops.
    compiling = torch.compiler.is_compiling() and not is_exporting()
    if compiling and maps.requires_grad and not torch.are_deterministic_algorithms_enabled():
        return torch.ops.mask2former.enlarge.default(maps, list(size))  # type: ignore[no-any-return]
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _forward(maps: Tensor, size: Sequence[int]) -> Tensor:
    out = torch.ops.aten.upsample_bilinear2d.default(maps, list(size), False, None, None)
    return out.contiguous(memory_format=_format(maps))


def _backward(grad: Tensor, shape: Sequence[int]) -> Tensor:
    size = list(grad.shape[2:])
    out = torch.ops.aten.upsample_bilinear2d_backward.default(grad, size, list(shape), False, None, None)
    return out.contiguous(memory_format=_format(grad))


def _fake_forward(maps: Tensor, size: Sequence[int]) -> Tensor:
    shape = (*maps.shape[:2], *size)
    return torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=_format(maps))


def _fake_backward(grad: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=_format(grad))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = list(inputs[0].shape)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.mask2former.enlarge_backward.default(grad, ctx.shape), None


def _autograd_twice(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("compiled training has no second derivatives; with MODEL.COMPILE off there are some")


register_ops(
    Op(_SCHEMAS[0], _forward, _fake_forward, _autograd, _setup),
    Op(_SCHEMAS[1], _backward, _fake_backward, _autograd_twice),
)
