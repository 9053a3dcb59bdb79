"""Tiles cover an image, and what was cut into tiles is put together again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former.result_parts import InstanceResult, PanopticResult, Segment
from mask2former.tiling import merge_instances, merge_panoptic, merge_semantic, plan_tiles

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(SIZES, st.integers(16, 120), st.floats(0, 0.8))
def test_tiles_cover_the_image_cores_partition_it(size: tuple[int, int], edge: int, overlap: float) -> None:
    count = np.zeros(size, np.int64)
    for tile in plan_tiles(size, edge, overlap):
        rows, columns = tile.window
        assert rows.start >= 0 and rows.stop <= size[0] and columns.start >= 0 and columns.stop <= size[1]
        assert rows.stop - rows.start == min(edge, size[0]) and columns.stop - columns.start == min(edge, size[1])
        count[tile.core_window] += 1
        inner = tile.inside(np.ones((rows.stop - rows.start, columns.stop - columns.start)))
        assert inner.shape == count[tile.core_window].shape
    assert (count == 1).all()


@pytest.mark.parametrize(("edge", "overlap"), [(15, 0.1), (64, -0.1), (64, 0.9)])
def test_tiles_that_make_no_sense(edge: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="tile|overlap"):
        plan_tiles((100, 100), edge, overlap)


def disks(size: tuple[int, int], seed: int, radius: tuple[int, int]) -> np.ndarray:
    """Return a label map of disks that lie apart."""
    rng, label_map = np.random.default_rng(seed), np.zeros(size, np.int32)
    ys, xs = np.mgrid[: size[0], : size[1]]
    for _ in range(60):
        y, x, r = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(*radius)
        if not label_map[(ys - y) ** 2 + (xs - x) ** 2 <= (r + 2) ** 2].any():
            label_map[(ys - y) ** 2 + (xs - x) ** 2 <= r**2] = label_map.max() + 1
    return label_map


def seen_in(part: np.ndarray) -> InstanceResult:
    """Return what a perfect model finds in a tile."""
    ids = [k for k in np.unique(part) if k]
    masks = np.stack([part == k for k in ids]) if ids else np.zeros((0, *part.shape), bool)
    return InstanceResult.from_masks(
        masks, np.linspace(0.9, 0.6, len(ids)).astype(np.float32), np.zeros(len(ids), np.int64), ["disk"] * len(ids)
    )


@pytest.mark.parametrize("radius", [(3, 7), (20, 45)])  # smaller than the margin; larger than a tile
@pytest.mark.parametrize("seed", range(3))
def test_instances_that_were_cut_are_one_again(seed: int, radius: tuple[int, int]) -> None:
    truth = disks((170, 230), seed, radius)
    tiles = plan_tiles(truth.shape, 64, 0.3)
    merged = merge_instances(tiles, [seen_in(truth[tile.window]) for tile in tiles], truth.shape)
    assert len(merged) == truth.max()
    assert sorted(merged.areas) == sorted(np.bincount(truth.ravel())[1:])
    assert ((merged.label_map() > 0) == (truth > 0)).all()
    assert (np.diff(merged.scores) <= 0).all()


def test_objects_of_two_classes_at_one_place_stay_two() -> None:
    truth = np.zeros((40, 100), np.int32)
    truth[10:30, 40:60] = 1
    tiles = plan_tiles(truth.shape, 60, 0.3)
    parts = [seen_in(truth[tile.window]) for tile in tiles]
    parts[-1] = InstanceResult(parts[-1].patches, parts[-1].scores, parts[-1].labels + 1, ("square",))
    assert set(merge_instances(tiles, parts, truth.shape).names) == {"disk", "square"}


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_maps_are_put_together(seed: int) -> None:
    truth = disks((150, 210), seed, (5, 40))
    tiles = plan_tiles(truth.shape, 64, 0.3)
    parts = []
    for number, tile in enumerate(tiles):
        values, local = np.unique(truth[tile.window], return_inverse=True)
        local = local.reshape(truth[tile.window].shape).astype(np.int32) + 1
        segments = tuple(
            Segment(i, int(v > 0), "disk" if v else "sky", bool(v), 0, 0.5 + number / 100)
            for i, v in enumerate(values, 1)
        )
        parts.append(PanopticResult(local, segments))
    merged = merge_panoptic(tiles, parts, truth.shape)
    assert len(merged) == truth.max() + 1 and sum(s.is_thing for s in merged.segments) == truth.max()
    pairs = np.unique(merged.map.astype(np.int64) * 1000 + truth)
    assert len(pairs) == truth.max() + 1  # a one-to-one map of ids
    assert all(segment.area == (merged.map == segment.id).sum() for segment in merged.segments)


def test_semantic_maps_are_put_together() -> None:
    truth = np.random.default_rng(0).integers(0, 5, (90, 130)).astype(np.uint8)
    tiles = plan_tiles(truth.shape, 40, 0.25)
    assert (merge_semantic(tiles, [truth[tile.window] for tile in tiles], truth.shape) == truth).all()
