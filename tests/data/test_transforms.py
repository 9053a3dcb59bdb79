from __future__ import annotations

import random

import numpy as np
import pytest
from detectron2.data import transforms as T

from mask2former.data.transforms import (
    ColorAugSSD,
    ColorTransform,
    PadToSquare,
    RandomRot90,
    ResizeScale,
    ResizeShortestEdge,
    flip_augmentations,
)


def test_color_distortion_is_repeatable_and_within_its_limits() -> None:
    image = np.full((6, 6, 3), (200, 100, 50), np.uint8)
    random.seed(0)
    results = []
    for _ in range(300):
        transform = ColorAugSSD().get_transform(image)
        first = transform.apply_image(image)
        np.testing.assert_array_equal(first, transform.apply_image(image))
        assert first.dtype == np.uint8 and first.shape == image.shape
        results.append(first[0, 0].astype(int))
    untouched = sum(bool((result == (200, 100, 50)).all()) for result in results)
    assert 5 <= untouched <= 40  # one in sixteen
    assert np.mean(results) == pytest.approx(117, abs=12)  # no drift of brightness


def test_color_order_bgr_mirrors_rgb() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    tables = np.stack([np.arange(256)] * 3).astype(np.uint8)
    tables[0] += 60
    steps = [("hsv", tables)]
    turned = ColorTransform(steps, "RGB").apply_image(rgb)
    assert (turned != rgb).any()
    np.testing.assert_array_equal(ColorTransform(steps, "BGR").apply_image(rgb[:, :, ::-1])[:, :, ::-1], turned)


def test_gray_stays_gray_under_hue_and_saturation() -> None:
    gray = np.repeat(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], 3, axis=2)
    tables = np.stack([np.roll(np.arange(256), 40), np.minimum(np.arange(256) * 1.4, 255), np.arange(256)])
    result = ColorTransform([("hsv", tables.astype(np.uint8))]).apply_image(gray)
    np.testing.assert_array_equal(result, gray)


def test_thin_images_keep_a_pixel() -> None:
    thin = np.zeros((1, 1000, 3), np.uint8)
    for augmentation in (ResizeScale(0.1, 0.1, 64, 64), ResizeShortestEdge(32, 64, "choice")):
        assert min(augmentation.get_transform(thin).apply_image(thin).shape) >= 1


def test_turns_come_in_all_four_ways() -> None:
    np.random.seed(0)
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    seen = {RandomRot90().get_transform(image).apply_image(image).tobytes() for _ in range(60)}
    assert len(seen) == 4


def test_padding_fills_and_never_cuts() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    padded = PadToSquare(20).get_transform(image).apply_image(image)
    assert padded.shape == (20, 30, 3) and (padded[10:] == 128).all()
    label = PadToSquare(20).get_transform(image).apply_segmentation(np.ones((10, 30), np.uint8))
    assert not label[10:].any()
    assert isinstance(PadToSquare(-1).get_transform(image), T.NoOpTransform)


def test_flip_setting() -> None:
    assert flip_augmentations("none") == []
    assert flip_augmentations("vertical")[0].vertical
    with pytest.raises(ValueError, match=r"INPUT\.RANDOM_FLIP"):
        flip_augmentations("both")


def test_label_maps_are_padded_with_the_given_value() -> None:
    pad = PadToSquare(8, 65535).get_transform(np.zeros((5, 8, 3), np.uint8))
    label = pad.apply_segmentation(np.ones((5, 8), np.float32))
    assert label.shape == (8, 8) and (label[5:] == 65535).all() and (label[:5] == 1).all()


def test_colors_are_distributed_as_detectron2s() -> None:
    """Mean, spread and tails of the levels over many draws, for colors far from gray and near it."""
    from detectron2.projects.point_rend import ColorAugSSDTransform

    image = np.array([[(200, 80, 40), (60, 180, 90)], [(120, 110, 130), (30, 60, 220)]], np.uint8)
    random.seed(0)
    ours = np.stack([ColorAugSSD("RGB").get_transform(image).apply_image(image) for _ in range(6000)])
    theirs = np.stack([ColorAugSSDTransform("RGB").apply_image(image) for _ in range(6000)])
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        difference = np.quantile(ours.astype(float), quantile, axis=0) - np.quantile(theirs, quantile, axis=0)
        assert np.abs(difference).max() <= 8, quantile
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=3.5)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=3.5)


def test_large_scale_jitter_draws_scales_evenly() -> None:
    """The side that fits into the target is 0.1 to 2.0 times the target, uniformly."""
    np.random.seed(0)
    image = np.zeros((300, 400, 3), np.uint8)
    widths = np.array([ResizeScale(0.1, 2.0, 256, 256).get_transform(image).new_w for _ in range(2000)]) / 256
    assert 0.1 <= widths.min() < 0.12 and 1.98 < widths.max() <= 2.0
    counts, _ = np.histogram(widths, bins=10, range=(0.1, 2.0))
    assert counts.min() > 150 and counts.max() < 250  # 200 expected, standard deviation 13


def test_the_log_names_a_rotation_without_an_address() -> None:
    assert repr(RandomRot90()) == "RandomRot90()"
