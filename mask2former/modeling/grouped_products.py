"""Products of many vectors with the maps of their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .half_products import product

Halves = tuple[Tensor, Tensor]


def products(rows: Tensor, maps: Tensor, sizes: Sequence[int], halves: Halves | None = None) -> Tensor:
    """Multiply each vector with the maps of its image.

    Args:
        rows: (M, C), image by image.
        maps: (B, C, S).
        sizes: number of rows of each image, M together.
        halves: `rows` and `maps` as the bf16 numbers that they were before, without gradients, if `are_halves`; the
            gradient of the result is then rounded to bf16, as autocast does. `maps` may be (B, C, ...) then: only
            their gradient is made of them.

    Returns:
        (M, S).
    """
    if halves is not None:
        return _HalfProducts.apply(rows, maps, *halves, list(sizes))
    if len(set(sizes)) == 1:
        return torch.bmm(rows.view(len(maps), sizes[0], maps.shape[1]), maps).flatten(0, 1)
    return _Products.apply(rows, maps, list(sizes))


class _Products(torch.autograd.Function):
    """One product an image, written where it belongs: no joining of results, and no gradient of the maps per image."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, maps: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        ctx.save_for_backward(rows, maps)
        out = rows.new_empty(len(rows), maps.shape[2])
        for row, image, target in zip(rows.split(sizes), maps, out.split(sizes), strict=True):
            if len(row):
                torch.mm(row, image, out=target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, maps = ctx.saved_tensors
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_maps = maps.new_empty(maps.shape) if ctx.needs_input_grad[1] else None
        first = 0
        for image, size in enumerate(ctx.sizes):
            part = slice(first, first + size)
            first += size
            if grad_maps is not None:
                # Without rows this is zero.
                torch.mm(rows[part].T, grad[part], out=grad_maps[image])
            if grad_rows is not None and size:
                torch.mm(grad[part], maps[image].T, out=grad_rows[part])
        return grad_rows, grad_maps, None


class _HalfProducts(torch.autograd.Function):
    """The same of bf16 numbers, whose products and sums are fp32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, maps: Tensor, half_rows: Tensor, half_maps: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes, ctx.shape = sizes, maps.shape
        ctx.save_for_backward(half_rows, half_maps)
        out = rows.new_empty(len(rows), half_maps.shape[2])
        _each(half_rows, half_maps, out, sizes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, maps = ctx.saved_tensors
        grad = grad.to(torch.bfloat16)
        grad_rows = grad_maps = None
        if ctx.needs_input_grad[0]:
            grad_rows = rows.new_empty(rows.shape, dtype=torch.float32)
            _each(grad, maps.transpose(1, 2), grad_rows, ctx.sizes)
        if ctx.needs_input_grad[1]:
            grad_maps = maps.new_zeros(maps.shape, dtype=torch.float32)
            columns = rows.T
            first = 0
            for target, size in zip(grad_maps, ctx.sizes, strict=True):
                part = slice(first, first + size)
                first += size
                if size:
                    product(columns[:, part], grad[part], target)
            grad_maps = grad_maps.view(ctx.shape)
        return grad_rows, grad_maps, None, None, None


def _each(rows: Tensor, maps: Tensor, out: Tensor, sizes: Sequence[int]) -> None:
    """Multiply bf16 rows (M, C), image by image, with the maps (B, C, S) of their image into fp32 `out` (M, S)."""
    for row, image, target in zip(rows.split(sizes), maps, out.split(sizes), strict=True):
        if len(row):
            product(row, image, target)
