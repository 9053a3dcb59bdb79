"""Packed masks against the arrays that they were made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former.structures.mask_list import MaskList
from mask2former.structures.masks import paste
from mask2former.structures.packed_masks import PackedMasks


def pack(masks: np.ndarray) -> PackedMasks:
    """Pack bool (N, h, w)."""
    dense = MaskList.from_dense(masks, masks.shape[1:])
    boxes = dense.boxes.astype(np.int64)
    bits = np.packbits(masks, axis=2, bitorder="little")
    rows = [m[top:bottom, left // 8 : -(-right // 8)] for m, (left, top, right, bottom) in zip(bits, boxes.tolist())]
    return PackedMasks(rows, boxes, dense.areas)


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30))
def test_masks_come_back(seed: int, height: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    masks = generator.random((4, height, width)) < np.array([0.0, 0.01, 0.1, 0.9])[:, None, None]
    masks[3, :, : seed % (width + 1)] = False
    packed, size = pack(masks), (height, width)
    assert np.array_equal(paste(list(packed), size), masks)
    assert all(patch.bits.dtype == bool for patch in packed)
    assert np.array_equal(paste([packed[-1]], size)[0], masks[3]) and len(packed[1:3]) == 2


def test_list_of_packed_masks_unpacks_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((3, 5, 20), dtype=bool)
    masks[0, 1:3, 4:17], masks[2, 4, 19] = True, True
    packed, expected = MaskList(pack(masks), (5, 20)), MaskList.from_dense(masks)
    monkeypatch.setattr(PackedMasks, "_patch", None)
    chosen, same = (x.select(np.array([True, False, True])).select(np.array([1, 0, 1])) for x in (packed, expected))
    assert len(chosen) == 3
    assert np.array_equal(chosen.areas, same.areas) and np.array_equal(chosen.boxes, same.boxes)
    assert chosen.boxes.dtype == same.boxes.dtype
    monkeypatch.undo()
    assert np.array_equal(chosen.dense(), same.dense()) and chosen.encode() == same.encode()
    assert np.array_equal(chosen.select(np.array([2])).dense(), same.dense()[2:])


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="1 masks, 2 boxes and 1 areas"):
        PackedMasks([np.zeros((1, 1), np.uint8)], np.zeros((2, 4), np.int64), np.zeros(1, np.int64))
