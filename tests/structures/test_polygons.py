"""Polygons: exact, valid, and one ring for formats without holes and parts."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.structures.masks import EMPTY_PATCH, Patch
from mask2former.structures.polygons import Polygon, join_holes, join_polygons, signed_area, trace_polygons

SIZE = (23, 31)


def random_patch(seed: int, smooth: bool) -> Patch:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 13, 2)
    bits = rng.random((height, width)) < rng.uniform(0.2, 0.9)
    if smooth:
        bits = bits.repeat(2, axis=0)[:height]
    return Patch(int(rng.integers(0, SIZE[0] - height + 1)), int(rng.integers(0, SIZE[1] - width + 1)), bits)


def dense(patch: Patch) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[patch.top :, patch.left :][: patch.bits.shape[0], : patch.bits.shape[1]] = patch.bits
    return mask


def rasterized(rings: list[np.ndarray]) -> np.ndarray:
    codes = coco_mask.frPyObjects([ring.ravel().astype(float).tolist() for ring in rings], *SIZE)
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def as_shapely(polygons: list[Polygon]) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([(p.exterior, p.holes) for p in polygons])


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_outlines_are_valid_and_rasterize_to_the_mask(seed: int, smooth: bool) -> None:
    patch = random_patch(seed, smooth)
    polygons = trace_polygons(patch)
    if not patch.bits.any():
        assert polygons == [] and len(join_polygons(polygons)) == 0
        return
    mask = dense(patch)
    for polygon in polygons:
        part = shapely.Polygon(polygon.exterior, polygon.holes)
        assert part.is_valid, shapely.is_valid_reason(part)
        assert signed_area(polygon.exterior) > 0 and all(signed_area(hole) < 0 for hole in polygon.holes)
    shape = as_shapely(polygons)
    assert shape.area == np.count_nonzero(mask)
    y, x = np.indices(SIZE) + 0.5
    np.testing.assert_array_equal(shapely.contains_xy(shape, x, y), mask)
    np.testing.assert_array_equal(rasterized([join_holes(polygon) for polygon in polygons]), mask)
    ring = join_polygons(polygons)
    assert signed_area(ring) == shape.area
    np.testing.assert_array_equal(rasterized([ring]), mask)


@pytest.mark.parametrize("bits", [[[1]], [[1, 1]], [[1], [1]], [[1, 1], [1, 0]], [[1, 0], [0, 1]], [[1, 1, 1]]])
def test_objects_of_a_few_pixels_are_polygons(bits: list[list[int]]) -> None:
    patch = Patch(4, 7, np.array(bits, dtype=bool))
    for tolerance in (0.0, 2.0):
        polygons = trace_polygons(patch, tolerance)
        assert all(len(polygon.exterior) >= 3 for polygon in polygons)
        np.testing.assert_array_equal(rasterized([polygon.exterior for polygon in polygons]), dense(patch))


def test_a_pixel_is_its_square_and_a_hole_is_a_ring() -> None:
    ((exterior, holes),) = trace_polygons(Patch(2, 5, np.ones((1, 1), bool)))
    assert sorted(exterior.tolist()) == [[5, 2], [5, 3], [6, 2], [6, 3]] and holes == ()
    bits = np.ones((5, 6), bool)
    bits[1, 1] = bits[3, 2:4] = False
    ((exterior, holes),) = trace_polygons(Patch(0, 0, bits))
    assert len(exterior) == 4 and sorted(map(signed_area, holes)) == [-2, -1]
    assert trace_polygons(EMPTY_PATCH) == []


def test_tolerance_leaves_out_points_and_keeps_the_shape() -> None:
    y, x = np.indices((60, 60)) - 29.5
    radius = np.hypot(x, y)
    disk = Patch(0, 0, (radius < 28) & (radius > 10))
    (exact,), (simple,) = trace_polygons(disk), trace_polygons(disk, 1.0)
    assert len(simple.exterior) < len(exact.exterior) / 3 and len(simple.holes) == 1
    shapes = [shapely.Polygon(p.exterior, p.holes) for p in (exact, simple)]
    assert shapes[0].intersection(shapes[1]).area > 0.95 * shapes[0].union(shapes[1]).area
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tolerance"):
            trace_polygons(disk, wrong)
