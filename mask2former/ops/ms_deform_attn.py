"""Entry point of multi-scale deformable attention: checks arguments, then runs the back end of the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from . import extension, registration
from .reference import ms_deform_attn_reference

logger = logging.getLogger(__name__)

MAX_LEVELS = 32
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_VARIABLE = "MASK2FORMER_OPS_BACKEND"


def _forced_by_environment() -> bool:
    requested = os.environ.get(_VARIABLE) or "auto"
    if requested not in ("auto", "pytorch"):
        raise ValueError(f"environment variable {_VARIABLE} must be auto or pytorch, got {requested!r}")
    return requested == "pytorch"


_forced_pytorch = _forced_by_environment()


def backend(device_type: str) -> str:
    """Return the back end that is used for `device_type` ("cpu", "cuda"): "compiled" or "pytorch"."""
    return "compiled" if not _forced_pytorch and extension.loaded(device_type) else "pytorch"


@contextmanager
def pytorch_backend() -> Iterator[None]:
    """Use the PyTorch code in this context, even if a compiled op is available (ONNX export, comparisons)."""
    global _forced_pytorch
    before, _forced_pytorch = _forced_pytorch, True
    try:
        yield
    finally:
        _forced_pytorch = before


@cache
def _announce(device_type: str, name: str) -> None:
    logger.info("Deformable attention on %s runs on the '%s' back end", device_type, name)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling: Tensor,
    attention: Tensor,
    reference_points: Tensor | None = None,
) -> Tensor:
    """Sample L feature maps at a few points per query and head, and sum them with the attention weights.

    Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, equation 3). There are two forms:

    * without `reference_points`, `sampling` are locations and `attention` weights that are already normalized;
    * with them (the fused form), `sampling` are the offsets and `attention` the logits as they come from the
      projections. Location arithmetic and softmax then happen inside the op, forward and backward.

    Args:
        value: (B, S, heads, D) float, the L maps flattened one after another; S = sum of H * W.
        spatial_shapes: (H, W) of each level, Python ints, at most 32 levels.
        sampling: (B, N, heads, L, P, 2). Locations (x, y) in [0, 1] of each map, fp32 (fp64 with an fp64 value); or
            offsets in pixels of the level, any float dtype. Points outside a map read zero (on CUDA also the
            product of zero and a pixel of the border, which is NaN where that pixel is not finite).
        attention: (B, N, heads, L, P), weights, or logits before the softmax over L * P. Any float dtype.
        reference_points: (N, 2), (B or 1, N, 2) or (B or 1, N, L or 1, 2), (x, y) in [0, 1], fp32 (fp64 with fp64).

    Returns:
        (B, N, heads * D) in the dtype of `value`. Under autocast the value is cast to autocast's dtype; locations and
        reference points never are.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices; the message names the argument.
    """
    shapes = [(h, w) for h, w in spatial_shapes]
    reference_points = _check(value, shapes, sampling, attention, reference_points)
    device = value.device.type
    if torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        value = value.to(torch.get_autocast_dtype(device))
    name = backend(device)
    if not torch.compiler.is_compiling():  # no logging in a graph
        _announce(device, name)
    if name == "pytorch":
        return ms_deform_attn_reference(value, shapes, sampling, attention, reference_points)
    flat = [n for shape in shapes for n in shape]
    return registration.ms_deform_attn(value, flat, reference_points, sampling, attention)


def _check(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    sampling: Tensor,
    attention: Tensor,
    reference: Tensor | None,
) -> Tensor | None:
    """Raise ValueError for inconsistent arguments; return contiguous reference points (B or 1, N, L or 1, 2)."""
    if value.dim() != 4:
        raise ValueError(f"value must be (B, S, heads, D), got {tuple(value.shape)}")
    batch, length, heads, _ = value.shape
    if not 1 <= len(shapes) <= MAX_LEVELS:
        raise ValueError(f"spatial_shapes must name 1 to {MAX_LEVELS} levels, got {len(shapes)}")
    if any(h < 1 or w < 1 for h, w in shapes):
        raise ValueError(f"spatial_shapes must be positive, got {shapes}")
    expected = sum(h * w for h, w in shapes)
    if length != expected:
        raise ValueError(f"spatial_shapes {shapes} hold {expected} positions, value has {length}")
    if sampling.dim() != 6 or sampling.shape[-1] != 2:
        raise ValueError(f"sampling must be (B, N, heads, L, P, 2), got {tuple(sampling.shape)}")
    if sampling.shape[0] != batch or sampling.shape[2] != heads or sampling.shape[3] != len(shapes):
        raise ValueError(
            f"sampling {tuple(sampling.shape)} does not fit batch {batch}, heads {heads}, levels {len(shapes)}"
        )
    if sampling.shape[4] == 0:
        raise ValueError(f"sampling must hold at least one point, got {tuple(sampling.shape)}")
    if attention.shape != sampling.shape[:-1]:
        raise ValueError(f"attention must be {tuple(sampling.shape[:-1])}, got {tuple(attention.shape)}")
    if reference is not None:
        reference = _aligned(reference, batch, sampling.shape[1], len(shapes))
    _check_dtypes(value, sampling, attention, reference)
    return reference


def _aligned(reference: Tensor, batch: int, queries: int, levels: int) -> Tensor:
    """Expand (N, 2), (B or 1, N, 2) or (B or 1, N, L or 1, 2) to the last form."""
    given = tuple(reference.shape)
    if reference.dim() == 2:
        reference = reference[None, :, None]
    elif reference.dim() == 3:
        reference = reference[:, :, None]
    is_valid = (
        reference.dim() == 4
        and reference.shape[0] in (1, batch)
        and reference.shape[1] == queries
        and reference.shape[2] in (1, levels)
        and reference.shape[3] == 2
    )
    if not is_valid:
        raise ValueError(
            f"reference_points must be (N, 2), (B or 1, N, 2) or (B or 1, N, L or 1, 2) with B {batch}, N {queries}, "
            f"L {levels}; got {given}"
        )
    return reference.contiguous()


def _check_dtypes(value: Tensor, sampling: Tensor, attention: Tensor, reference: Tensor | None) -> None:
    """Raise ValueError for unsupported or inconsistent dtypes and devices."""
    named = {"value": value, "sampling": sampling, "attention": attention, "reference_points": reference}
    double = value.dtype == torch.float64
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"{name} must be fp32, bf16, fp16 or fp64, got {tensor.dtype}")
        if (tensor.dtype == torch.float64) != double:
            raise ValueError(
                f"{name} is {tensor.dtype}, value is {value.dtype}; fp64 requires that all inputs are fp64"
            )
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, value on {value.device}")
    coordinates = "sampling" if reference is None else "reference_points"
    given = sampling if reference is None else reference
    if given.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{coordinates} must be fp32, got {given.dtype}: half-precision coordinates miss by a quarter of a pixel "
            "at width 128"
        )
