"""Masks travel to the device as bits, and are the same there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mask2former.data.batch_transport import PackedBatch
from mask2former.modeling import device_transfer
from mask2former.modeling.device_transfer import masks_to_device
from mask2former.structures.mask_bits import MaskBits


def test_on_the_cpu_masks_stay() -> None:
    masks = [torch.ones(2, 3, 3, dtype=torch.bool)]
    assert masks_to_device(masks, torch.device("cpu"))[0] is masks[0]
    assert masks_to_device([], torch.device("cpu")) == []
    mixed = masks_to_device([*masks, MaskBits.of(masks[0])], torch.device("cpu"))
    assert mixed[0] is masks[0] and torch.equal(mixed[1], masks[0])


def test_what_is_large_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    monkeypatch.setattr(torch, "empty", lambda *_, pin_memory=False, **__: pinned.append(pin_memory))
    for count, device in ((2**26, "cuda"), (2**26 + 1, "cuda"), (8, "cpu")):
        device_transfer._upload((count,), torch.int16, torch.device(device))
    assert pinned == [True, False, False]


@pytest.mark.parametrize("pinned", [False, True])
def test_bytes_lie_one_after_the_other(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: pinned)
    bits = [MaskBits.of(torch.rand(n, 33, 31) > 0.5).bits for n in (3, 0, 1)]
    expected = torch.cat([each.flatten() for each in bits])
    assert torch.equal(device_transfer._together(bits, torch.device("cpu")), expected)
    assert device_transfer._together([], torch.device("cpu")).shape == (0,)


@pytest.mark.gpu
def test_masks_arrive_on_a_gpu() -> None:
    device = torch.device("cuda")
    masks = [torch.rand(n, 33, 31) > 0.5 for n in (3, 0, 1)]
    bits = [MaskBits.of(mask) for mask in masks]
    on_device = [mask.cuda() for mask in masks]
    for given in (masks, bits, [masks[0], *bits[1:]], on_device, [*on_device[:2], bits[2]]):
        moved = masks_to_device(given, device)
        assert all(mask.is_cuda for mask in moved)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(moved, masks, strict=True))
    assert masks_to_device([], device) == []


@pytest.mark.gpu
def test_pinned_bits_are_not_copied_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [torch.rand(n, 33, 31) > 0.5 for n in (3, 0, 1)]
    samples = [MaskBits.of(mask) for mask in masks]
    batch: Any = PackedBatch.of(samples, for_model=True).pin_memory()
    assert all(each.bits.is_pinned() for each in batch)
    mixed = masks_to_device([batch[0], *samples[1:]], torch.device("cuda"))
    monkeypatch.setattr(device_transfer, "_upload", None)
    for moved in (mixed, masks_to_device(list(batch), torch.device("cuda"))):
        assert all(mask.is_cuda and torch.equal(mask.cpu(), b) for mask, b in zip(moved, masks, strict=True))
