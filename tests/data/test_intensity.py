from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T

from mask2former.data.deferred_image import DeferredInput, reads_only_size
from mask2former.data.intensity import IntensityTransform, RandomIntensity
from mask2former.data.sampler import random_state

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def drawn(seed: int, **options: float) -> np.ndarray:
    with random_state(0, seed):
        return RandomIntensity(**options).get_transform(IMAGE).apply_image(IMAGE)


def test_the_defaults_change_nothing() -> None:
    assert isinstance(RandomIntensity().get_transform(IMAGE), T.NoOpTransform)


@pytest.mark.parametrize(
    "options",
    [{"gamma": 2.0}, {"invert": 0.5}, {"gray": 0.5}, {"blur": 2.0}, {"noise": 0.1}, {"brightness": 2.0}],
    ids=str,
)
def test_each_option_changes_pixels_by_its_seed(options: dict[str, float]) -> None:
    before = IMAGE.copy()
    results = [drawn(seed, **options) for seed in range(12)]
    assert {(result.dtype.name, result.shape) for result in results} == {("uint8", IMAGE.shape)}
    assert any((result != IMAGE).any() for result in results)
    np.testing.assert_array_equal(drawn(4, **options), results[4])
    np.testing.assert_array_equal(IMAGE, before)


def test_gamma_keeps_order_and_ends() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    middles = []
    for seed in range(60):
        with random_state(0, seed):
            result = RandomIntensity(gamma=2.0).get_transform(ramp).apply_image(ramp)
        levels = result[..., 0].reshape(-1).astype(int)
        assert levels[0] == 0 and levels[-1] == 255 and (np.diff(levels) >= 0).all()
        middles.append(levels[128])
    assert 63 < min(middles) < 75 and 170 < max(middles) < 182  # (1/2) ** 2 and (1/2) ** 0.5


def test_dim_objects_keep_their_levels() -> None:
    """A nucleus of 20 gray levels on 6 stays visible whatever is drawn."""
    dim = np.full((20, 20, 3), 6, np.uint8)
    dim[5:15, 5:15] = 20
    for seed in range(60):
        with random_state(0, seed):
            result = RandomIntensity(gamma=1.8, brightness=1.8, invert=0.3).get_transform(dim).apply_image(dim)
        contrast = int(result[10, 10, 0]) - int(result[0, 0, 0])
        assert abs(contrast) >= 5
    black = np.zeros((4, 4, 3), np.uint8)
    assert not IntensityTransform(exponent=2.0, factor=1.5, noise=0.1).apply_image(black).any()


def test_brightness_is_a_factor_with_an_end() -> None:
    brighter = IntensityTransform(factor=2.0).apply_image(np.array([[[10, 60, 200]]], np.uint8))
    assert brighter.tolist() == [[[20, 120, 255]]]


def test_inversion_twice_is_the_image_and_gray_has_one_channel() -> None:
    inverted = IntensityTransform(inverted=True)
    np.testing.assert_array_equal(inverted.apply_image(inverted.apply_image(IMAGE)), IMAGE)
    gray = IntensityTransform(gray=True).apply_image(IMAGE).astype(int)
    assert (gray == gray[..., :1]).all()
    np.testing.assert_allclose(gray[..., 0], IMAGE.mean(axis=2), atol=1)


def test_noise_has_its_spread_and_leaves_gray_images_gray() -> None:
    flat = np.full((100, 100, 3), 100, np.uint8)
    noisy = IntensityTransform(noise=0.1, seed=1).apply_image(flat).astype(int)
    assert (noisy == noisy[..., :1]).all() and noisy.std() == pytest.approx(10, rel=0.05)
    assert abs(noisy.mean() - 100) < 0.5
    other = IntensityTransform(noise=0.1, seed=2).apply_image(flat)
    assert (other != noisy).any()


def test_blur_smooths_and_keeps_the_mean() -> None:
    blurred = IntensityTransform(blur=1.5).apply_image(IMAGE).astype(float)
    assert blurred.std() < IMAGE.std() / 2 and blurred.mean() == pytest.approx(IMAGE.mean(), abs=2)


def test_deferred_images_give_the_same_pixels() -> None:
    options = {"gamma": 2.0, "invert": 0.5, "gray": 0.5, "blur": 1.0, "noise": 0.05}
    chain = T.AugmentationList([RandomIntensity(**options), T.Resize((50, 40)), T.RandomCrop("absolute", (20, 20))])
    assert reads_only_size(chain.augs[0])
    for seed in range(6):
        with random_state(2, seed):
            plain = T.AugInput(IMAGE.copy())
            chain(plain)
        with random_state(2, seed):
            deferred = DeferredInput(IMAGE)
            deferred.augment(chain)
        np.testing.assert_array_equal(deferred.pixels(), plain.image)


def test_images_without_pixels() -> None:
    assert IntensityTransform(True, 2.0, 1.5, True, 1.0, 1.0).apply_image(IMAGE[:0]).shape == (0, 30, 3)
