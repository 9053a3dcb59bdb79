"""Group normalization in its form for few images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mask2former.modeling.normalization import GroupNorm, _by_all_of_a_gpu, build_norm


def test_names() -> None:
    assert isinstance(build_norm("GN", 64), GroupNorm)
    assert build_norm("", 64) is None
    assert isinstance(build_norm("BN", 64), nn.BatchNorm2d)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_form_for_few_images_is_exact_far_from_zero(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, 64).to(dtype)
    nn.init.normal_(norm.weight)
    x = (torch.randn(2, 64, 10, 13) / 2 + 300).to(dtype).contiguous(memory_format=memory_format)
    x[0, 0] = 300  # almost no variance
    x[0, 0, 0, 0] = 302
    found = _by_all_of_a_gpu(x, 32, norm.weight, norm.bias, norm.eps)
    assert found.dtype == dtype and found.is_contiguous(memory_format=memory_format)
    exact = norm.double()(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_few_images_are_normalized_as_many(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(32, 64).cuda()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm = norm.double() if dtype == torch.float64 else norm
    x = (torch.randn(2, 64, 30, 41, device="cuda") * 3 + 5).to(dtype).contiguous(memory_format=memory_format)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = norm(x)
        with torch.no_grad():
            found = norm(x)
    assert found.dtype == expected.dtype and found.is_contiguous(memory_format=memory_format)
    tight = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tight, atol=tight)
