"""Masks travel to the device as bits, and are the same there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling import device_transfer
from mask2former.modeling.device_transfer import masks_to_device, pack, unpack


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=5), st.integers(0, 2**31))
def test_bits_are_the_masks(shapes: list[tuple[int, int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(shape, generator=generator) > 0.5 for shape in shapes]
    packed = pack(masks)
    assert packed.dtype == torch.uint8 and len(packed) == sum(-(-mask.numel() // 8) for mask in masks)
    for mask, again in zip(masks, unpack(packed, masks), strict=True):
        assert again.dtype == torch.bool and torch.equal(again, mask)


def test_masks_that_are_no_rows_of_memory() -> None:
    mask = torch.rand(4, 6, 5) > 0.5
    views = [mask[1::2], mask.transpose(1, 2), mask[:, 1:4, 2:]]
    assert all(torch.equal(a, b) for a, b in zip(unpack(pack(views), views), views, strict=True))


def test_on_the_cpu_masks_stay() -> None:
    masks = [torch.ones(2, 3, 3, dtype=torch.bool)]
    assert masks_to_device(masks, torch.device("cpu"))[0] is masks[0]
    assert masks_to_device([], torch.device("cpu")) == []


def test_what_is_large_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    monkeypatch.setattr(torch, "empty", lambda *_, pin_memory=False, **__: pinned.append(pin_memory))
    for count, device in ((2**26, "cuda"), (2**26 + 1, "cuda"), (8, "cpu")):
        device_transfer._upload((count,), torch.int16, torch.device(device))
    device_transfer._upload((8,), torch.int16, None)
    assert pinned == [True, False, False, False]


@pytest.mark.gpu
def test_masks_arrive_on_a_gpu() -> None:
    device = torch.device("cuda")
    masks = [torch.rand(n, 33, 31) > 0.5 for n in (3, 0, 1)]
    for given_masks in (masks, [mask.cuda() for mask in masks], []):
        moved = masks_to_device(given_masks, device)
        assert all(mask.is_cuda for mask in moved)
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(moved, given_masks, strict=True))
