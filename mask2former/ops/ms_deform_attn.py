"""The one entry to multi-scale deformable attention. Back ends register here; callers never choose one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from .reference import ms_deform_attn_reference

logger = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]

# Device type -> (name, kernel). A compiled back end adds itself; a device without one takes the PyTorch code.
_KERNELS: dict[str, tuple[str, Kernel]] = {}


def register_kernel(device_type: str, name: str, kernel: Kernel) -> None:
    """Make `kernel` the back end for tensors on `device_type` ("cpu", "cuda")."""
    _KERNELS[device_type] = (name, kernel)
    _announce.cache_clear()


def backend(device_type: str) -> str:
    """Name of the back end that serves `device_type`."""
    return _KERNELS.get(device_type, ("pytorch", ms_deform_attn_reference))[0]


@cache
def _announce(device_type: str, name: str) -> None:
    logger.info("Deformable attention on %s runs on the '%s' back end", device_type, name)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample L feature maps at a few points per query and head, and sum them with the attention weights.

    Args:
        value: (B, S, heads, D) float, the L maps flattened one after another; S = sum of H * W.
        spatial_shapes: (H, W) of each level, Python ints.
        sampling_locations: (B, N, heads, L, P, 2), (x, y) in [0, 1] of each map, fp32 (fp64 with an fp64 value);
            points outside read zero.
        attention_weights: (B, N, heads, L, P), already normalised over L * P.

    Returns:
        (B, N, heads * D) in the dtype of `value`.

    Raises:
        ValueError: shapes that do not fit together; the message names the argument.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    name, kernel = _KERNELS.get(value.device.type, ("pytorch", ms_deform_attn_reference))
    if not torch.compiler.is_compiling():  # a graph does not log
        _announce(value.device.type, name)
    return kernel(value, spatial_shapes, sampling_locations, attention_weights)


def _check(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be (B, S, heads, D), got {tuple(value.shape)}")
    batch, length, heads, _ = value.shape
    expected = sum(h * w for h, w in spatial_shapes)
    if length != expected:
        raise ValueError(f"spatial_shapes {list(spatial_shapes)} hold {expected} positions, value has {length}")
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(f"sampling_locations must be (B, N, heads, L, P, 2), got {tuple(locations.shape)}")
    if locations.shape[0] != batch or locations.shape[2] != heads or locations.shape[3] != len(spatial_shapes):
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} do not fit batch {batch}, heads {heads}, "
            f"levels {len(spatial_shapes)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"attention_weights must be {tuple(locations.shape[:-1])}, got {tuple(weights.shape)}")
