from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.data.polygon_masks import fill_polygons
from mask2former.structures.masks import clip_patch, polygons_to_patches


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from(["any", "whole", "tenths", "edges"]),
    st.integers(0, 2**32 - 1),
)
def test_masks_are_those_of_pycocotools(size: tuple[int, int], counts: list[int], numbers: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = []
    for _ in range(sum(counts)):
        points = rng.uniform(-30, 90, 2) + rng.normal(0, np.exp(rng.uniform(-3, 4)), (int(rng.integers(3, 12)), 2))
        if numbers == "edges":  # and corners of the image
            points = np.clip(points, 0, [size[1], size[0]])
        polygons.append({"whole": np.round(points), "tenths": np.round(points, 1)}.get(numbers, points))
    rows, columns = (sorted(rng.integers(0, side + 1, 2).tolist()) for side in size)
    window = (rows[0], rows[1], columns[0], columns[1])
    remaining = iter(polygons)
    objects = [[next(remaining) for _ in range(count)] for count in counts]
    expected = [clip_patch(patch, *window) for patch in polygons_to_patches(objects, size)]
    for mine, theirs in zip(fill_polygons(polygons, counts, size, window), expected, strict=True):
        assert mine.bits.dtype == bool and mine.bits.shape == theirs.bits.shape
        assert not mine.bits.size or mine[:2] == theirs[:2]
        np.testing.assert_array_equal(mine.bits, theirs.bits)


def test_the_way_without_the_compiled_op_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    polygons = [np.array([[1.0, 1], [9, 2], [4, 8]]), np.array([[6.0, 6], [9, 6], [9, 9]])]
    first = fill_polygons(polygons, [1, 0, 1], (10, 10), (0, 8, 2, 10))
    monkeypatch.setattr("mask2former.data.polygon_masks.torch.ops", SimpleNamespace(mask2former=SimpleNamespace()))
    second = fill_polygons(polygons, [1, 0, 1], (10, 10), (0, 8, 2, 10))
    for mine, theirs in zip(first, second, strict=True):
        assert mine[:2] == theirs[:2] and np.array_equal(mine.bits, theirs.bits)
    assert [bool(patch.bits.size) for patch in first] == [True, False, True]
    assert fill_polygons([], [], (10, 10), (0, 10, 0, 10)) == []


@pytest.mark.skipif(not hasattr(torch.ops.mask2former, "fill_polygons"), reason="needs the compiled op")
def test_wrong_calls_of_the_op() -> None:
    points = torch.zeros(5, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="more points than"):
        torch.ops.mask2former.fill_polygons(points, [3, 3], [2], [9, 9], [0, 9, 0, 9])
    with pytest.raises(RuntimeError, match="more polygons than"):
        torch.ops.mask2former.fill_polygons(points, [5], [2], [9, 9], [0, 9, 0, 9])
    with pytest.raises(RuntimeError, match="float64"):
        torch.ops.mask2former.fill_polygons(points.float(), [5], [1], [9, 9], [0, 9, 0, 9])
