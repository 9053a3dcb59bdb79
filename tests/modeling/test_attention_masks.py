"""Resizing of mask features to the levels of masked attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.transformer_decoder.attention_masks import _evenly, means_of_centers, resized


@pytest.mark.parametrize("size", [(16, 20), (8, 10), (4, 5), (16, 5), (1, 1)])
def test_means_of_centers_are_bilinear_interpolation(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert _evenly(maps.shape[-2:], size)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(means_of_centers(maps, size), expected, atol=1e-15, rtol=1e-14)
    turned = maps.to(memory_format=torch.channels_last)
    torch.testing.assert_close(means_of_centers(turned, size), expected, atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("size", [(32, 40), (16, 40), (11, 20), (64, 80), (33, 40), (5, 8)])
def test_other_sizes_are_left_to_pytorch(size: tuple[int, int]) -> None:
    assert not _evenly((32, 40), size)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(16, 20), (8, 10), (4, 5), (11, 13), (32, 40), (64, 80)])
def test_a_gpu_resizes_as_the_cpu_does(size: tuple[int, int], dtype: torch.dtype) -> None:
    maps = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = resized(maps.cuda(), size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), resized(maps, size), atol=1e-6, rtol=1e-6)
