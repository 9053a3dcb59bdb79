"""Deterministic weights and inputs for the parity vectors in this directory: the same numbers on every machine."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Distinct queries, decisive classes and masks: otherwise every query says the same and no threshold is tested.
GAIN = {
    "query_feat": 24.0,
    "query_embed": 24.0,
    "class_embed": 24.0,
    "mask_embed.layers.2": 1.0,
    "output_proj": 0.5,
    "linear2": 0.5,
    "out_proj": 0.2,
}


def fill(state_dict: dict[str, Tensor], draw: Callable[..., Any] = torch.randn) -> dict[str, Tensor]:
    """Return new values for every tensor of a model's state dict, each drawn from a generator seeded by its key.

    Norm statistics stay positive, matrices keep unit gain, and class scores are sharpened so that the
    panoptic and instance thresholds really decide something. Integer buffers keep their value.

    Args:
        state_dict: the tensors; only keys, shapes and integer buffers count.
        draw: `draw(shape, generator=)` gives numbers of mean 0 and variance 1. The last bits of `torch.randn` differ
            between processors with and without vector instructions; those of `exact` do not.
    """
    out = {}
    for key, tensor in state_dict.items():
        g = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        kept = key == "criterion.empty_weight" or key.endswith(("pixel_mean", "pixel_std"))
        if kept or not tensor.is_floating_point():
            out[key] = tensor.clone()
        elif key.endswith("running_var"):
            out[key] = 1 + 0.2 * torch.rand(tensor.shape, generator=g)
        elif key.endswith("running_mean") or key.endswith("bias"):
            out[key] = 0.05 * draw(tensor.shape, generator=g)
        elif tensor.dim() == 1:  # norm scales
            out[key] = 1 + 0.05 * draw(tensor.shape, generator=g)
        else:
            fan_in = math.prod(tensor.shape[1:])
            gain = next((v for k, v in GAIN.items() if k in key), 1.0)
            out[key] = gain * draw(tensor.shape, generator=g) / math.sqrt(fan_in)
    return out


def exact(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return uniform numbers of mean 0 and variance 1, float64, with the same bits on every machine."""
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * math.sqrt(3)


def image(height: int, width: int, seed: int = 0) -> Tensor:
    """Return a smooth colored image with edges: uint8 (3, height, width), RGB."""
    g = torch.Generator().manual_seed(1000 + seed)
    low = torch.rand(1, 3, 6, 8, generator=g, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(low, (height, width), mode="bicubic", align_corners=False)[0]
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None]
    disc = ((y - 0.4 * height) ** 2 + (x - 0.6 * width) ** 2) < (0.2 * height) ** 2
    smooth = torch.where(disc, 1 - smooth, smooth)
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)
