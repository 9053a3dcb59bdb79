"""Linear layers as convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mask2former.modeling.cpu_linear import CpuLinear


def test_linear_layers_as_convolutions() -> None:
    torch.manual_seed(0)
    linear = CpuLinear(8, 12)
    for shape in [(2, 300, 8), (600, 8), (3, 4, 100, 8), (5, 8), (0, 8)]:
        x = torch.randn(shape)
        torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))
    x = torch.randn(8, 700).T  # other strides
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))
