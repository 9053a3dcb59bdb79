"""Exact linear assignment of many problems at once: `torch.ops.mask2former.linear_assignment`, and its entry.

SciPy solves the problems on the CPU, and is what the CUDA kernel is compared with. Registration is as in
`registration.py`: the op exists with or without the compiled extension, and once in a process.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .ms_deform_attn import backend
from .registration import Op, register_ops

# Replaces costs that are not finite: larger than any finite cost, so that such a pair is matched last.
WORST = 1e8
# Queries and objects of a problem that the CUDA kernel has shared memory for; csrc/cuda/assignment.h has it too.
MAX_SIDE = 1024

_SCHEMA = "linear_assignment(Tensor cost, Tensor counts) -> Tensor"


def assigns_on(device_type: str, queries: int, objects: int) -> bool:
    """Return whether problems of this size are solved on `device_type` ("cuda"), without a copy to the CPU."""
    return (
        device_type == "cuda"
        and max(queries, objects) <= MAX_SIDE
        and backend("cuda") == "compiled"
        and torch._C._dispatch_has_kernel_for_dispatch_key("mask2former::linear_assignment", "CUDA")
    )


def linear_assignment(cost: Tensor, counts: Tensor) -> Tensor:
    """Match the queries and objects of each problem at the smallest total cost.

    Args:
        cost: (M, Q, N) float, of M problems; fp32 decides. A cost that is not finite counts as 1e8 (-1e8 for -inf).
        counts: (M,) int64 in [0, N], number of objects of each problem: the columns behind them are ignored.

    Returns:
        (M, N) int64, the query of each object; -1 for ignored columns, and for the objects that stay unmatched where
        there are more than queries. Which of several assignments of the same cost is found may depend on the device.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    if cost.dim() != 3 or not cost.is_floating_point():
        raise ValueError(f"cost must be (M, Q, N) float, got {tuple(cost.shape)} {cost.dtype}")
    if counts.shape != cost.shape[:1] or counts.dtype != torch.int64 or counts.device != cost.device:
        raise ValueError(
            f"counts must be ({len(cost)},) int64 on {cost.device}, got {tuple(counts.shape)} {counts.dtype} on "
            f"{counts.device}"
        )
    cost = cost.detach().float()
    if cost.device.type == "cuda" and not assigns_on("cuda", *cost.shape[1:]):
        return _by_scipy(cost, counts)
    return torch.ops.mask2former.linear_assignment(cost, counts)


def _by_scipy(cost: Tensor, counts: Tensor) -> Tensor:
    host = np.nan_to_num(cost.detach().cpu().numpy(), nan=WORST, posinf=WORST, neginf=-WORST)
    out = np.full((host.shape[0], host.shape[2]), -1, np.int64)
    for problem, row, count in zip(host, out, counts.tolist(), strict=True):
        queries, objects = linear_sum_assignment(problem[:, : max(count, 0)])
        row[objects] = queries
    return torch.from_numpy(out).to(cost.device)


def _fake(cost: Tensor, counts: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[0], cost.shape[2], dtype=torch.int64)


register_ops(Op(_SCHEMA, _by_scipy, _fake))
