from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import BitMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mask2former.structures.masks import (
    SegmentationError,
    bitmap_to_patch,
    boxes_from_masks,
    boxes_from_patches,
    check_polygons,
    decode_counts,
    paste,
    polygons_to_patches,
    rle_to_patch,
    segmentation_to_mask,
)

bitmaps = hnp.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def _encode(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"]}


@given(bitmaps)
@settings(max_examples=50)
def test_all_three_forms_of_a_mask_come_back(mask: np.ndarray) -> None:
    code = _encode(mask)
    text = {**code, "counts": code["counts"].decode()}
    plain = {**code, "counts": decode_counts(code["counts"]).tolist()}
    for form in (code, text, plain, mask, mask.astype(np.uint8) * 7, torch.from_numpy(mask)):
        np.testing.assert_array_equal(segmentation_to_mask(form, mask.shape), mask)


# pycocotools reserves six characters for a count: with counts from 2**29 on it writes behind its memory.
@given(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=40))
@settings(max_examples=50)
def test_counts_equal_those_of_pycocotools(counts: list[int]) -> None:
    code = coco_mask.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, sum(counts))
    assert decode_counts(code["counts"]).tolist() == counts


@given(st.integers(0, 2**32), st.integers(3, 12), st.integers(1, 3))
@settings(max_examples=50)
def test_polygons_equal_pycocotools_and_holes_need_rle(seed: int, points: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(0, 50, (points, 2)) for _ in range(parts)]
    flat = [polygon.reshape(-1).tolist() for polygon in polygons]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, 40, 50)))
    np.testing.assert_array_equal(segmentation_to_mask(flat, (40, 50)), expected.astype(bool))


def test_polygon_outside_shows_what_a_larger_canvas_shows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        polygon = rng.uniform(-30, 60, (7, 2))
        whole = paste(polygons_to_patches([[polygon + 40]], (120, 120)), (120, 120))[0]
        part = paste(polygons_to_patches([[polygon]], (32, 28)), (32, 28))[0]
        np.testing.assert_array_equal(part, whole[40:72, 40:68])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "no polygon"),
        ([[1, 2, 3, 4]], "4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "NaN"),
        ([[1, 2, 3, 4, 5, 1e300]], "far outside"),
        ([[1, 2, 3, "a", 5, 6]], "polygon 0"),
        ([[[1, 2], [3]]], "polygon 0"),
        ([7], "1 numbers"),
        ([None], "polygon 0"),
        ([{"a": 1}], "polygon 0"),
        ({"size": [8, 8]}, "counts"),
        ({"counts": "abc"}, "size"),
        ({"size": [8, 9], "counts": [72]}, "size"),
        ({"size": "88", "counts": [64]}, "size"),
        ({"size": [8, 8], "counts": [60]}, "add up"),
        ({"size": [8, 8], "counts": []}, "add up"),
        ({"size": [8, 8], "counts": ""}, "add up"),
        ({"size": [8, 8], "counts": [-1, 65]}, "negative"),
        ({"size": [8, 8], "counts": [2**62, 2**62, 2**62, 2**62]}, "add up"),
        ({"size": [8, 8], "counts": [2**70]}, "longer"),
        ({"size": [8, 8], "counts": [64.0]}, "integers"),
        ({"size": [8, 8], "counts": [True, 63]}, "integers"),
        ({"size": [8, 8], "counts": None}, "integers"),
        ({"size": [8, 8], "counts": "\x00"}, "invalid characters"),
        ({"size": [8, 8], "counts": "é"}, "invalid characters"),
        ({"size": [8, 8], "counts": "PP"}, "truncated"),
        ({"size": [8, 8], "counts": "P" * 20 + "0"}, "longer"),
        (np.zeros((8, 9), bool), "shape"),
        (np.zeros((8, 8), np.float32), "float32"),
        (None, "missing"),
        ("polygon", "str"),
    ],
)
def test_malformed_segmentations_say_why(segmentation: object, message: str) -> None:
    with pytest.raises(SegmentationError, match=message):
        segmentation_to_mask(segmentation, (8, 8))


@given(st.binary(max_size=30))
@settings(max_examples=50)
def test_random_counts_never_crash(counts: bytes) -> None:
    try:
        patch = rle_to_patch({"size": [9, 7], "counts": counts}, (9, 7))
    except SegmentationError:
        return
    assert paste([patch], (9, 7)).shape == (1, 9, 7)


def test_boxes_are_those_of_detectron2() -> None:
    masks = torch.rand(20, 13, 17, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[3] = False
    expected = BitMasks(masks).get_bounding_boxes().tensor
    assert torch.equal(boxes_from_masks(masks), expected)
    patches = [bitmap_to_patch(mask, (13, 17)) for mask in masks]
    assert torch.equal(boxes_from_patches(patches), expected)
    assert boxes_from_masks(masks[:0]).shape == boxes_from_patches([]).shape == (0, 4)


def test_checked_polygons_are_copies() -> None:
    source = np.arange(6, dtype=np.float64)
    check_polygons([source], (10, 10))[0][:] = 0
    assert source[-1] == 5
