"""Products of bf16 matrices with results in fp32, on the matrix units of GPUs.

Under autocast, query embeddings and mask features are bf16 numbers, which the reference implementation multiplies in
half precision. Here masks are fp32, as points are read from them where they are near 0. The product of two bf16 numbers
is exact in fp32, so what differs from casting both to fp32 first is the order of a sum, and that fp32 has no matrix
units: it takes about eight times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EXISTS = "dtype" in torch.ops.aten.bmm.overloads()  # since PyTorch 2.8, for CUDA


def are_halves(*tensors: Tensor) -> bool:
    """Return whether tensors can be arguments of `product`: bf16 on a GPU."""
    return _EXISTS and all(x.is_cuda and x.dtype == torch.bfloat16 for x in tensors)


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply bf16 matrices (M, C) and (C, S), or batches of them, without gradients; returns fp32, or fills `out`."""
    if not a.is_cuda:
        return torch.matmul(a.float(), b.float(), out=out)
    multiply = torch.bmm if a.dim() == 3 else torch.mm
    return multiply(a, b, torch.float32) if out is None else multiply(a, b, torch.float32, out=out)


def in_two(x: Tensor, dim: int) -> Tensor:
    """Return fp32 numbers as sums of two bf16 numbers, which have 16 significant bits: twice as many along `dim`."""
    high = x.to(torch.bfloat16)
    return torch.cat((high, (x - high).to(torch.bfloat16)), dim)


def twice(x: Tensor, dim: int) -> Tensor:
    """Return x after itself along `dim`, to be multiplied with `in_two`."""
    return torch.cat((x, x), dim)
