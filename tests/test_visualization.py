"""Colors, regions, and what the painter does to single pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former import visualization as v
from mask2former.structures.colors import color_of, shade_of
from mask2former.structures.mask_list import MaskList


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def regions_of(masks: np.ndarray, *drawing: Any) -> list[v.Region]:
    return v.regions_from_patches(MaskList.from_dense(masks), *drawing)


def test_colors_are_stable_bright_and_apart() -> None:
    colors = np.array([color_of(i) for i in range(300)], dtype=float)
    assert color_of(7) == color_of(7) and len({tuple(c) for c in colors}) == 300
    neighbors = np.abs(np.diff(colors, axis=0)).sum(axis=1)
    assert neighbors.min() > 90
    assert (colors @ [0.30, 0.59, 0.11]).min() > 90


def test_shades_differ_and_start_with_the_class_color() -> None:
    shades = [shade_of((200, 40, 40), i) for i in range(6)]
    assert shades[0] == (200, 40, 40) and len(set(shades)) == 6


def test_regions_from_patches_skip_empty_masks() -> None:
    masks = np.zeros((3, 20, 30), dtype=bool)
    masks[0, 2:5, 3:10] = True
    masks[2, 19, 29] = True
    found = regions_of(masks, [(1, 2, 3)] * 3, ["a", "b", "c"])
    assert [(r.text, r.x, r.y, r.mask.shape, r.area) for r in found] == [
        ("a", 3, 2, (3, 7), 21),
        ("c", 29, 19, (1, 1), 1),
    ]


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 70000), min_size=1, max_size=4, unique=True))
def test_regions_from_map_cover_exactly_the_named_labels(seed: int, labels: list[int]) -> None:
    values = np.array([*labels, 99999])
    label_map = values[np.random.default_rng(seed).integers(0, len(values), (9, 11))].astype(np.int32)
    again = np.full_like(label_map, 99999)
    for region in v.regions_from_map(label_map, {k: (k % 256, k // 256 % 256, k // 65536) for k in labels}):
        h, w = region.mask.shape
        r, g, b = region.color
        again[region.y : region.y + h, region.x : region.x + w][region.mask] = r + 256 * g + 65536 * b
    np.testing.assert_array_equal(again, label_map)


def test_fill_blends_inside_and_leaves_outside_alone() -> None:
    image = np.full((60, 80, 3), 100, dtype=np.uint8)
    before = image.copy()
    mask = disc(60, 80, 30, 40, 15)
    region = regions_of(mask[None], [(200, 0, 100)])
    out = np.asarray(v.draw_regions(image, region, alpha=0.5, line_width=0))
    np.testing.assert_array_equal(out[30, 40], [150, 50, 100])
    outside = ~disc(60, 80, 30, 40, 17)
    np.testing.assert_array_equal(out[outside], image[outside])
    np.testing.assert_array_equal(image, before)


def test_contour_lies_inside_the_border_and_is_thin() -> None:
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    mask = disc(60, 80, 30, 40, 20)
    color = (255, 255, 0)
    out = np.asarray(v.draw_regions(image, regions_of(mask[None], [color]), alpha=0.0, line_width=2.0))
    lit = out[..., 0] > 127
    assert lit.any() and not (lit & ~disc(60, 80, 30, 40, 20.6)).any()
    assert not (lit & disc(60, 80, 30, 40, 17)).any()
    assert abs(lit.sum() - 2 * 2 * np.pi * 19) < 40  # circumference times width


def test_small_objects_stay_visible_over_large_ones() -> None:
    image = np.zeros((50, 50, 3), dtype=np.uint8)
    masks = np.stack([disc(50, 50, 25, 25, 3), disc(50, 50, 25, 25, 20)])
    regions = regions_of(masks, [(255, 0, 0), (0, 255, 0)])
    out = np.asarray(v.draw_regions(image, regions, alpha=1.0, line_width=0))
    np.testing.assert_array_equal(out[25, 25], [255, 0, 0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 3.0])
def test_scaled_masks_keep_their_place_and_area(scale: float) -> None:
    image = np.zeros((60, 90, 3), dtype=np.uint8)
    mask = disc(60, 90, 20.0, 70.0, 12)
    drawn = v.draw_regions(
        image,
        regions_of(mask[None], [(255, 255, 255)]),
        alpha=1.0,
        line_width=0,
        scale=scale,
    )
    assert drawn.size == (round(90 * scale), round(60 * scale))
    lit = np.asarray(drawn)[..., 0] > 127
    assert lit.sum() / scale**2 == pytest.approx(mask.sum(), rel=0.06)
    y, x = (np.argwhere(lit) + 0.5).mean(axis=0) / scale
    assert (y, x) == pytest.approx((20.5, 70.5), abs=0.3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_tiny_images_and_masks_that_touch_all_borders(shape: tuple[int, int], scale: float) -> None:
    image = np.zeros((*shape, 3), dtype=np.uint8)
    regions = regions_of(np.ones((1, *shape), dtype=bool), [(255, 0, 0)], ["name"])
    out = np.asarray(v.draw_regions(image, regions, alpha=1.0, scale=scale, labels=True))
    assert out.shape == (max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1), 3)


def test_labels_appear_where_there_is_room_and_on_demand() -> None:
    image = np.full((200, 300, 3), 90, dtype=np.uint8)
    roomy, tight = disc(200, 300, 100, 90, 70), disc(200, 300, 40, 250, 4)
    plain = {"alpha": 0.0, "line_width": 0.0}
    for mask, auto in ((roomy, True), (tight, False)):
        regions = regions_of(mask[None], [(255, 0, 0)], ["tree"])
        drawn = [np.asarray(v.draw_regions(image, regions, labels=x, **plain)) for x in (None, True, False)]
        written = [bool((d.max(axis=2) > 200).any()) for d in drawn]  # white letters
        assert written == [auto, True, False]
    many = regions_of(np.stack([roomy] * 60), [(255, 0, 0)] * 60, ["tree"] * 60)
    assert not (np.asarray(v.draw_regions(image, many, **plain)).max(axis=2) > 200).any()


def test_legend_and_caption_extend_the_image() -> None:
    image = v.draw_regions(np.zeros((100, 200, 3), dtype=np.uint8), [])
    wide = v.add_legend(image, [("sky", (1, 200, 3)), ("tree", (9, 9, 200))] + [("x", (5, 5, 5))] * 30)
    assert wide.height == 100 and wide.width > 200
    assert (np.asarray(wide)[:, 200:].reshape(-1, 3) == [1, 200, 3]).all(axis=1).any()
    assert v.add_legend(image, []) is image
    one, three = v.add_caption(image, "short"), v.add_caption(image, "many words " * 8)
    assert one.width == 200 and three.height > one.height > 100


def test_wrong_arguments_say_what_is_expected() -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    for call, match in (
        (lambda: v.draw_regions(image[..., 0], []), "uint8"),
        (lambda: v.draw_regions(image.astype(float), []), "uint8"),
        (lambda: v.draw_regions(image, [], alpha=1.5), "between 0 and 1"),
        (lambda: v.draw_regions(image, [], scale=0), "positive"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_comfortable_scale_enlarges_small_images_only() -> None:
    assert [v.comfortable_scale(*s) for s in ((256, 256), (303, 384), (480, 640), (1000, 3000), (20, 20))] == [
        4,
        3,
        2,
        1,
        4,
    ]
