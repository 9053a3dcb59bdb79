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
    if halves is None:
        if len(set(sizes)) == 1:
            return torch.bmm(rows.view(len(maps), sizes[0], maps.shape[1]), maps).flatten(0, 1)
        halves = rows.detach(), maps.detach()
    return _Products.apply(rows, maps, *halves, list(sizes))


class _Products(torch.autograd.Function):
    """One product an image, written where it belongs: no joining of results, and no gradient of the maps per image.

    `rows` and `maps` get the gradients, `left` and `right` are what is multiplied: the same, or their bf16 numbers.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, maps: Tensor, left: Tensor, right: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes, ctx.shape = sizes, maps.shape
        ctx.save_for_backward(left, right)
        out = rows.new_empty(len(rows), right.shape[2])
        for row, image, target in zip(left.split(sizes), right, out.split(sizes), strict=True):
            _multiply(row, image, target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        grad_rows = grad.new_empty(left.shape) if ctx.needs_input_grad[0] else None
        grad_maps = grad.new_empty(right.shape) if ctx.needs_input_grad[1] else None
        grad = grad.to(left.dtype)
        first = 0
        for image, size in enumerate(ctx.sizes):
            part = slice(first, first + size)
            first += size
            if grad_maps is not None:
                _multiply(left[part].T, grad[part], grad_maps[image])
            if grad_rows is not None:
                _multiply(grad[part], right[image].T, grad_rows[part])
        return grad_rows, None if grad_maps is None else grad_maps.view(ctx.shape), None, None, None


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Fill `out` with the product of two matrices of its type, or of bf16 numbers."""
    if a.numel() == 0:
        out.zero_()
    elif a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        product(a, b, out)
