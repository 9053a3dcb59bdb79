"""Bilinear reads equal grid_sample's; uncertain points lie where logits are near zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling.point_sampling import MaskBank, sample_maps, uncertain_points


@given(st.integers(0, 2**31), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_bank_equals_grid_sample_on_padded_masks(seed: int, sizes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(seed)
    padded = (max(h for h, _ in sizes) + 2, max(w for _, w in sizes) + 1)
    groups = [torch.rand(2, h, w, generator=generator) > 0.5 for h, w in sizes]
    bank = MaskBank.of(groups, torch.device("cpu"))
    full = torch.cat([F.pad(g.float(), (0, padded[1] - g.shape[2], 0, padded[0] - g.shape[1])) for g in groups])
    index = torch.randperm(len(full), generator=generator)
    points = torch.rand(len(full), 30, 2, generator=generator) * 1.2 - 0.1  # some lie outside
    expected = sample_maps(full[index][:, None], points)[:, 0]
    torch.testing.assert_close(bank.sample(index, points, padded), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_masks_of_other_types_mean_the_same(dtype: torch.dtype) -> None:
    masks = torch.rand(2, 6, 7) > 0.5
    index, points = torch.arange(2), torch.rand(2, 20, 2)
    value = 1 if dtype == torch.float32 else 255
    banks = [MaskBank.of([m], torch.device("cpu")) for m in (masks, masks.to(dtype) * value)]
    expected, ours = (bank.sample(index, points, (6, 7)) for bank in banks)
    torch.testing.assert_close(ours, expected)


def test_bank_without_masks() -> None:
    bank = MaskBank.of([torch.zeros(0, 4, 5, dtype=torch.bool)], torch.device("cpu"))
    out = bank.sample(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 7, 2), (4, 5))
    assert out.shape == (0, 7)


def test_uncertain_points_lie_on_the_contour() -> None:
    logits = torch.linspace(-10, 10, 64)[None, None].expand(3, 16, -1).contiguous()  # zero at x = 0.5
    points = uncertain_points(logits, 200, oversample_ratio=3.0, importance_ratio=0.75)
    assert points.shape == (3, 200, 2)
    important, uniform = points[:, :150, 0], points[:, 150:, 0]
    assert (important - 0.5).abs().mean() < (uniform - 0.5).abs().mean()
    assert (important - 0.5).abs().max() < 0.25
