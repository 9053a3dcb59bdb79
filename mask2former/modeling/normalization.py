"""Group normalization that is fast for few images too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn

# PyTorch's kernel has a thread block for each group of each image, and a GPU needs about this many to be busy.
_BLOCKS = 128


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, whose statistics are computed by all of a GPU in inference on few images."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, ...); the memory format stays."""
        few = x.is_cuda and x.dim() == 4 and len(x) * self.num_groups <= _BLOCKS
        if (
            not few
            or not self.affine
            or x[0].numel() <= self.num_groups
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
        ):
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        if torch.is_autocast_enabled("cuda") and x.dtype != torch.float64:
            x = x.float()  # as autocast does
        return _by_all_of_a_gpu(x, self.num_groups, self.weight, self.bias, self.eps)


def _by_all_of_a_gpu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalize (B, C, H, W). Factors stay in fp32 for half precision: their sum may be small, and they are not."""
    by_group = x.unflatten(1, (groups, -1))
    wide = by_group if x.dtype == torch.float64 else by_group.float()
    variance, mean = torch.var_mean(wide, (2, 3, 4), correction=0)
    scale = weight.view(groups, -1) * (variance + eps).rsqrt()[..., None]
    shift = bias.view(groups, -1) - mean[..., None] * scale
    scale, shift = (value.flatten(1)[..., None, None] for value in (scale, shift))
    return torch.addcmul(shift, x, scale).to(x.dtype)


def build_norm(name: str | None, channels: int) -> nn.Module | None:
    """Build a norm of detectron2 by name ("" for none); "GN" with 32 groups is ours."""
    return GroupNorm(32, channels) if name == "GN" else get_norm(name, channels)
