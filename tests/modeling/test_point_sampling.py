"""Bilinear reads equal grid_sample's; uncertain points lie where logits are near zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling import point_sampling as module
from mask2former.modeling.point_sampling import MaskBank, sample_maps, uncertain_points


@given(st.integers(0, 2**31), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
@settings(max_examples=40)
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


def test_reads_by_hand() -> None:
    """Pixel i has its center at (i + 0.5) / size; outside is zero."""
    maps = torch.tensor([[[[0.0, 4.0, 8.0, 2.0], [1.0, 0.0, 0.0, 0.0]]]])
    points = torch.tensor([[[0.125, 0.25], [0.375, 0.25], [0.5, 0.25], [0.375, 0.5], [1.0, 0.25], [0.875, 0.0]]])
    assert sample_maps(maps, points)[0, 0].tolist() == pytest.approx([0, 4, 6, 2, 1, 1], abs=1e-5)
    bank = MaskBank.of([maps[0] > 3], torch.device("cpu"))
    read = bank.sample(torch.tensor([0]), points, (2, 4))[0]
    assert read.tolist() == pytest.approx([0, 1, 1, 0.5, 0, 0], abs=1e-5)


def test_masks_in_the_first_row_and_column_count() -> None:
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    masks[0, 0], masks[1, :, 0] = True, True
    centers = (torch.arange(3) + 0.5) / 3
    points = torch.cartesian_prod(centers, centers)[None]
    read = MaskBank.of([masks], torch.device("cpu")).sample(torch.arange(2), points, (3, 3)).view(2, 3, 3)
    torch.testing.assert_close(read, masks.transpose(1, 2).float())  # points are (x, y)


@pytest.mark.parametrize("chunk", [2**24, 20, 1])
def test_shared_points_are_those_of_the_group(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    masks, points = torch.rand(5, 6, 7) > 0.5, torch.rand(3, 10, 2)
    bank, group = MaskBank.of([masks[:2], masks[2:]], torch.device("cpu")), torch.tensor([0, 2, 1, 1, 2])
    expected = sample_maps(masks[:, None].float(), points[group])[:, 0]
    torch.testing.assert_close(bank.sample_shared(group, points, (6, 7)), expected, atol=1e-5, rtol=0)
    assert bank.sample_shared(group[:0], points, (6, 7)).shape == (0, 10)


def test_shared_points_are_read_in_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    sample = module.sample_masks
    monkeypatch.setattr(module, "sample_masks", lambda *rest: calls.append(len(rest[2])) or sample(*rest))
    monkeypatch.setattr(module, "_CHUNK", 25)
    bank = MaskBank.of([torch.ones(5, 2, 2, dtype=torch.bool)], torch.device("cpu"))
    bank.sample_shared(torch.zeros(5, dtype=torch.int64), torch.rand(1, 10, 2), (2, 2))
    assert calls == [2, 2, 1]


def test_uncertain_points_are_the_least_certain_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 points of 12 candidates: 6 important ones, of both signs, and 2 uniform ones of another draw."""
    draws = [torch.rand(1, 12, 2), torch.rand(1, 2, 2)]
    given = iter(draws)
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch, "rand", lambda *shape, device: shapes.append(shape) or next(given))
    logits = torch.linspace(-9, 9, 16)[None, None].expand(1, 4, -1)
    points = uncertain_points(logits, 8, oversample_ratio=1.5, importance_ratio=0.75)
    assert shapes == [(1, 12, 2), (1, 2, 2)]
    certainty = sample_maps(logits[:, None], draws[0])[0, 0].abs()
    expected = draws[0][0, certainty.argsort()[:6]]
    assert sorted(points[0, :6].tolist()) == sorted(expected.tolist())
    assert torch.equal(points[0, 6:], draws[1][0])
