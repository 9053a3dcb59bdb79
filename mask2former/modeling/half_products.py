"""Products of bf16 matrices with results in fp32, on the matrix units of GPUs.

Under autocast, query embeddings and mask features are bf16 numbers, which the reference implementation multiplies in
half precision. Here masks are fp32, as points are read from them where they are near 0. The product of two bf16 numbers
is exact in fp32, so what differs from casting both to fp32 first is the order of a sum, and that fp32 has no matrix
units: it takes about eight times as long. Interpolated mask features are no bf16 numbers any more; as sums of two, see
`in_two`, they are rounded to 16 significant bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.tracing import is_exporting

# Since PyTorch 2.8, for CUDA. Builds for AMD have the op, but older ones refuse to run it.
_EXISTS = "dtype" in torch.ops.aten.bmm.overloads() and torch.version.hip is None
_COMPILES = not torch.__version__.startswith("2.9.")  # whose compiler fails on it


def are_halves(*tensors: Tensor) -> bool:
    """Return whether tensors can be arguments of `product`: bf16 on a GPU that has matrix units for them.

    Not in exported programs, which run on other devices, too.
    """
    if not _EXISTS or not all(x.is_cuda and x.dtype == torch.bfloat16 for x in tensors):
        return False
    if torch.compiler.is_compiling() and (is_exporting() or not _COMPILES):
        return False
    # Older GPUs emulate bf16, and PyTorch refuses this product on them.
    return torch.cuda.get_device_properties(tensors[0].device).major >= 8  # type: ignore[no-any-return]


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply bf16 matrices (M, C) and (C, S), or batches of them, without gradients; returns fp32, or fills `out`."""
    if not a.is_cuda:
        with torch.autocast(a.device.type, enabled=False):  # which knows no products of bf16 with results in fp32
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
