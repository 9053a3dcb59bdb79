"""Masks inside their bounding boxes behave as the dense masks that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mask2former.structures.mask_list import MaskList, intersection_area
from mask2former.structures.masks import Patch
from mask2former.structures.rle import encode_masks

MASKS = st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


@given(MASKS)
def test_dense_boxes_areas_and_run_lengths_are_those_of_the_masks(masks: np.ndarray) -> None:
    stored = MaskList.from_dense(masks)
    assert (stored.dense() == masks).all() and stored.dense().shape == masks.shape
    assert stored.areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    assert stored.encode() == encode_masks(torch.from_numpy(masks))
    assert (MaskList.from_rles(stored.encode(), masks.shape[1:]).dense() == masks).all()
    for i, mask in enumerate(masks):
        assert (mask[stored.window(i)] == stored[i].bits).all() and mask.sum() == stored[i].bits.sum()


@given(MASKS)
def test_intersection(masks: np.ndarray) -> None:
    stored = MaskList.from_dense(masks)
    for i in range(len(masks)):
        for j in range(len(masks)):
            assert intersection_area(stored[i], stored[j]) == (masks[i] & masks[j]).sum()


def test_label_map_regions_in_the_order_asked_for() -> None:
    label_map = np.array([[0, 7, 7], [3, 7, 0]])
    stored = MaskList.from_label_map(label_map, [7, 3, 5, 7])
    assert (stored.dense() == np.stack([label_map == k for k in (7, 3, 5, 7)])).all()


def test_select_and_empty() -> None:
    stored = MaskList.from_dense(np.eye(3, dtype=bool)[:, None, :])
    assert stored.select(np.array([2, 0])).boxes[:, 0].tolist() == [2, 0]
    assert stored.select(np.array([False, True, False])).areas.tolist() == [1]
    assert MaskList([], (4, 5)).dense().shape == (0, 4, 5)


def test_too_large_for_one_array_is_an_error_that_names_the_patches() -> None:
    patch = Patch(0, 0, np.ones((1, 1), bool))
    stored = MaskList([patch] * 2000, (3000, 3000))
    assert len(stored.encode()) == 2000
    with pytest.raises(MemoryError, match="patches"):
        stored.dense()
