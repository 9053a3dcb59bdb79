"""Bits of masks are the masks."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.structures.mask_bits import MaskBits, unpack_together

SHAPES = st.tuples(*[st.integers(0, 5)] * 4) | st.tuples(*[st.integers(0, 9)] * 3)


def random_masks(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(SHAPES, max_size=5), st.integers(0, 2**31))
def test_bits_are_the_masks(shapes: list[tuple[int, ...]], seed: int) -> None:
    masks = [random_masks(shape, seed + i) for i, shape in enumerate(shapes)]
    packed = [MaskBits.of(each) for each in masks]
    nothing = torch.zeros(0, dtype=torch.uint8)
    together = unpack_together(torch.cat([nothing, *(each.bits.flatten() for each in packed)]), packed)
    for mask, bits, again in zip(masks, packed, together, strict=True):
        assert bits.bits.dtype == torch.uint8 and len(bits) == len(mask)
        assert bits.bits.shape == (*mask.shape[:-2], -(-mask.shape[-2] * mask.shape[-1] // 8))
        for unpacked in (bits.unpacked(), again):
            assert unpacked.dtype == torch.bool and torch.equal(unpacked, mask)


def test_the_first_pixel_is_the_lowest_bit_and_each_mask_begins_a_byte() -> None:
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 2, 2] = masks[1, 0, 1] = True
    assert MaskBits.of(masks).bits.tolist() == [[1, 1], [2, 0]]


@pytest.mark.parametrize("view", [lambda m: m[1::2], lambda m: m.transpose(1, 2), lambda m: m[:, 1:4, 2:]])
def test_masks_that_are_no_rows_of_memory(view) -> None:
    mask = view(random_masks((4, 6, 5), 0))
    assert torch.equal(MaskBits.of(mask).unpacked(), mask)


def test_it_is_pickled() -> None:
    mask = random_masks((2, 3, 5), 1)
    assert torch.equal(pickle.loads(pickle.dumps(MaskBits.of(mask))).unpacked(), mask)
