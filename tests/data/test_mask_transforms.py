from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.data.mask_transforms import index_map, move_patches, move_polygons, patches_by_id
from mask2former.data.transforms import ColorAugSSD, PadToSquare, RandomRot90, ResizeScale, Rot90Transform
from mask2former.structures.masks import bitmap_to_patch, paste


def _blobs(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    centers = rng.uniform(0, min(size), (count, 2))
    radii = rng.uniform(1, min(size) / 2, count)
    return np.stack([(y - c[0]) ** 2 + (x - c[1]) ** 2 < r * r for c, r in zip(centers, radii, strict=True)])


def _chains() -> list[list[T.Augmentation]]:
    lsj = [T.RandomFlip(), ResizeScale(0.1, 2.0, 48, 48), T.FixedSizeCrop((48, 48), seg_pad_value=0)]
    turned = [
        RandomRot90(),
        T.RandomFlip(horizontal=False, vertical=True),
        ColorAugSSD(),
        *lsj,
        RandomRot90(),
    ]
    shortest = [
        T.ResizeShortestEdge([20, 30, 50], 70, "choice"),
        T.RandomCrop("absolute", (24, 24)),
        *lsj[:1],
    ]
    return [lsj, turned, [*shortest, PadToSquare(40)]]


@pytest.mark.parametrize("chain", range(3))
def test_moving_patches_equals_transforming_whole_masks(chain: int) -> None:
    np.random.seed(chain)
    rng = np.random.default_rng(chain)
    for _ in range(25):
        size = tuple(int(side) for side in rng.integers(3, 90, 2))
        masks = _blobs(rng, size, 5)
        inputs = T.AugInput(np.zeros((*size, 3), np.uint8))
        transforms = T.AugmentationList(_chains()[chain])(inputs)
        expected = np.stack([transforms.apply_segmentation(mask.astype(np.uint8)) for mask in masks]) == 1
        assert index_map(transforms, size).size == inputs.image.shape[:2]
        moved = move_patches([bitmap_to_patch(mask, size) for mask in masks], transforms, size)
        np.testing.assert_array_equal(paste(moved, inputs.image.shape[:2]), expected)


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_patches_of_an_id_map(size: tuple[int, int], count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, count, size) * 70000
    ids = ids.repeat(rng.integers(1, 4), axis=0).repeat(rng.integers(1, 4), axis=1)
    patches = patches_by_id(ids)
    assert list(patches) == np.unique(ids).tolist()
    for label, patch in patches.items():
        expected = bitmap_to_patch(ids == label, ids.shape)
        assert patch[:2] == expected[:2]
        np.testing.assert_array_equal(patch.bits, expected.bits)
    assert list(patches_by_id(ids, {70000, 5})) == ([70000] if (ids == 70000).any() else [])
    assert patches_by_id(ids[:0]) == {}


def test_other_transforms_go_the_slow_way() -> None:
    mask = np.zeros((30, 40), bool)
    mask[10:20, 10:25] = True
    tail = PadTransform(2, 3, 4, 5, 40, 30, 128, 255)
    transforms = T.TransformList([T.RotationTransform(30, 40, 20, expand=False), tail])
    assert index_map(transforms, (30, 40)) is None
    expected = transforms.apply_segmentation(mask.astype(np.uint8)) == 1
    moved = paste(move_patches([bitmap_to_patch(mask, (30, 40))], transforms, (30, 40)), (38, 46))[0]
    np.testing.assert_array_equal(moved, expected)
    assert 100 < moved.sum() < 200


def test_cropped_polygon_is_the_crop_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        polygon = rng.uniform(0, 60, (6, 2))
        resize = T.ResizeTransform(60, 60, 90, 120)
        crop = T.CropTransform(20, 10, 40, 30)
        uncropped = move_polygons([[polygon]], T.TransformList([resize]), (60, 60), (90, 120))
        part = move_polygons([[polygon]], T.TransformList([resize, crop]), (60, 60), (30, 40))
        expected = paste(uncropped, (90, 120))[0][10:40, 20:60]
        np.testing.assert_array_equal(paste(part, (30, 40))[0], expected)


def test_polygon_does_not_leak_into_padding_after_a_crop() -> None:
    polygon = np.array([[0.0, 0], [50, 0], [50, 50], [0, 50]])
    transforms = T.TransformList([T.CropTransform(0, 0, 20, 20), PadTransform(0, 0, 10, 10, 20, 20)])
    mask = paste(move_polygons([[polygon]], transforms, (50, 50), (30, 30)), (30, 30))[0]
    assert mask[:20, :20].all() and mask.sum() == 400


def test_no_objects_and_vanished_objects() -> None:
    transforms = T.TransformList([T.CropTransform(0, 0, 5, 5)])
    assert move_polygons([], transforms, (9, 9), (5, 5)) == []
    far = np.array([[6.0, 6], [8, 6], [8, 8]])
    assert not move_polygons([[far]], transforms, (9, 9), (5, 5))[0].bits.size


@pytest.mark.parametrize("turns", range(4))
def test_rotations_move_points_like_pixels_and_back(turns: int) -> None:
    transform = Rot90Transform(8, 12, turns)
    mask = np.zeros((8, 12), np.uint8)
    mask[1:3, 2:7] = 1
    turned = transform.apply_image(mask)
    corners = transform.apply_coords(np.array([[2.0, 1], [7, 3]]))
    (left, top), (right, bottom) = corners.min(axis=0).astype(int), corners.max(axis=0).astype(int)
    assert turned.sum() == turned[top:bottom, left:right].sum() == (bottom - top) * (right - left) == 10
    np.testing.assert_array_equal(transform.inverse().apply_image(turned), mask)
