from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mask2former.structures.panoptic_ids import MAX_ID, id_to_rgb, rgb_to_id

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@settings(max_examples=100)
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, (*shape, 3))))
def test_ids_of_colors(rgb: np.ndarray) -> None:
    ids = rgb_to_id(rgb)
    assert ids.dtype == np.int32 and ids.shape == rgb.shape[:-1]
    assert ids.ravel().tolist() == [r + 256 * g + 65536 * b for r, g, b in rgb.reshape(-1, 3).tolist()]
    assert np.array_equal(id_to_rgb(ids), rgb)


@settings(max_examples=100)
@given(st.data(), st.sampled_from([np.int32, np.uint32, np.int64, ">i4"]))
def test_colors_of_ids(data: st.DataObject, dtype: type[np.integer] | str) -> None:
    ids = data.draw(arrays.arrays(dtype, SHAPES, elements=st.integers(0, MAX_ID)))
    rgb = id_to_rgb(ids)
    assert rgb.dtype == np.uint8 and rgb.shape == (*ids.shape, 3) and rgb.flags.c_contiguous
    expected = [[i % 256, i // 256 % 256, i // 65536] for i in ids.ravel().tolist()]
    assert rgb.reshape(-1, 3).tolist() == expected
    assert np.array_equal(rgb_to_id(rgb), ids)


def test_views_and_narrow_ids() -> None:
    rgba = np.arange(2 * 6 * 4, dtype=np.uint8).reshape(2, 6, 4)
    view = rgba[:, ::-2, :3]
    assert np.array_equal(id_to_rgb(rgb_to_id(view)), view)
    assert np.array_equal(rgb_to_id(view), rgb_to_id(view.copy()))
    ids = np.array([[0, 7], [255, 9]], np.uint8).T
    assert id_to_rgb(ids)[0, 1].tolist() == [255, 0, 0]
    assert int(rgb_to_id(np.array([1, 2, 3], np.uint8))) == 1 + 2 * 256 + 3 * 65536


@pytest.mark.parametrize("rgb", [np.zeros((2, 3), np.int64), np.zeros((2, 4), np.uint8), np.array(1, np.uint8)])
def test_other_colors_are_refused(rgb: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(\.\.\., 3\)"):
        rgb_to_id(rgb)


@pytest.mark.parametrize(
    "ids, message", [([-1, 0], "-1 to 0"), ([3, MAX_ID + 1], f"3 to {MAX_ID + 1}"), ([0.5], "int")]
)
def test_ids_without_color_are_refused(ids: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        id_to_rgb(np.array(ids))
