"""Linear layers on many tokens, on x86 CPUs: as 1x1 convolutions of oneDNN.

PyTorch computes linear layers in float32 with MKL, which on CPUs of other makers than Intel takes about a quarter
longer than oneDNN, and adds the bias in another pass. Convolutions are the public way to oneDNN.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below it the detour costs more than it saves.
_MIN_TOKENS = 512
# It has no effect on a 1x1 kernel, but with one thread PyTorch leaves 1x1 convolutions without it to MKL.
DILATION = (2, 2)


def runs_onednn() -> bool:
    """Return whether the CPU is one (x86) for which PyTorch has convolutions and products of oneDNN, and has them."""
    return torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def prefers_convolution(weight: Tensor) -> bool:
    """Return whether products with `weight` are faster in oneDNN than in MKL."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16) and runs_onednn()


class CpuLinear(nn.Linear):
    """`nn.Linear` by way of a convolution, where that is faster; same parameters, results equal to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., C) -> (..., C')."""
        tokens = x.numel() // max(self.in_features, 1)
        if tokens < _MIN_TOKENS or x.dtype == torch.float64 or torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        line = x.reshape(1, 1, tokens, self.in_features).permute(0, 3, 1, 2)  # an image of one row, channels last
        out = F.conv2d(line, self.weight[:, :, None, None], self.bias, dilation=DILATION)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)
