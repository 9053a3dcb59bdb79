"""Stain augmentation: what stays, what changes, and by how much."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T

from mask2former.data.deferred_image import DeferredInput, reads_only_size
from mask2former.data.mask_transforms import index_map
from mask2former.data.sampler import random_state
from mask2former.data.stains import (
    STAINS,
    RandomStains,
    StainTransform,
    is_bright_field,
    is_colorless,
    stain_matrix,
)


def tissue(first: str = "hematoxylin", second: str = "eosin") -> np.ndarray:
    """Return uint8 (40, 40, 3): a disk of the first stain in a light film of the second one."""
    y, x = np.mgrid[:40, :40]
    disk = ((x - 20) ** 2 + (y - 20) ** 2 < 100)[..., None]
    matrix = stain_matrix(first, second)
    density = np.where(disk, 0.6 * matrix[0], 0.15 * matrix[1])
    return np.rint(256 * 10**-density - 1).astype(np.uint8)


def drawn(seed: int, image: np.ndarray, strength: float = 0.3, swap: float = 0.3) -> np.ndarray:
    with random_state(0, seed):
        return RandomStains(1.0, strength, swap).get_transform(image).apply_image(image)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_zero_strength_changes_no_pixel(image_format: str) -> None:
    image = np.random.default_rng(0).integers(90, 256, (33, 21, 3), dtype=np.uint8)
    with random_state(0, 0):
        transform = RandomStains(1.0, 0.0, 0.0, image_format).get_transform(image)
    assert type(transform) is StainTransform
    np.testing.assert_array_equal(transform.apply_image(image), image)


def test_results_are_bytes_of_the_same_shape_and_follow_the_seed() -> None:
    image = tissue()
    before = image.copy()
    results = [drawn(seed, image, strength=1.0, swap=0.5) for seed in range(20)]
    assert {(result.dtype.name, result.shape) for result in results} == {("uint8", (40, 40, 3))}
    np.testing.assert_array_equal(drawn(3, image, strength=1.0, swap=0.5), results[3])
    assert len({result.tobytes() for result in results}) == 20
    np.testing.assert_array_equal(image, before)


def test_fluorescence_is_left_alone() -> None:
    dark = np.random.default_rng(0).integers(0, 120, (30, 30, 3), dtype=np.uint8)
    assert not is_bright_field(dark) and is_bright_field(tissue())
    np.testing.assert_array_equal(drawn(1, dark, strength=1.0, swap=1.0), dark)


def test_concentrations_move_along_the_colors_of_the_stains() -> None:
    """A pixel of pure hematoxylin keeps its color and changes its density, up to the constants."""
    color = np.array(STAINS["hematoxylin"]) / np.linalg.norm(STAINS["hematoxylin"])
    image = np.rint(256 * 10 ** -(0.4 * np.broadcast_to(color, (8, 8, 3))) - 1).astype(np.uint8)
    densities = []
    for seed in range(60):
        new = -np.log10((drawn(seed, image, strength=0.4, swap=0.0)[0, 0] + 1.0) / 256)
        densities.append(new @ color)
        assert np.linalg.norm(new - (new @ color) * color) < 0.16  # constants of the other stains
    # 0.4 * (1 +- 0.4), and 0.08 more or less of hematoxylin and (three quarters of it in this direction) of eosin.
    assert 0.09 < min(densities) < 0.32 and 0.48 < max(densities) < 0.71


def test_swapped_stains_include_brown_nuclei_and_brown_surroundings() -> None:
    image = tissue()
    results = [drawn(seed, image, strength=0.2, swap=1.0).astype(int) for seed in range(60)]
    brown = [(result[20, 20, 0] > result[20, 20, 2] + 15, result[2, 2, 0] > result[2, 2, 2] + 8) for result in results]
    assert 10 < sum(nucleus for nucleus, _ in brown) < 35
    assert sum(around and not nucleus for nucleus, around in brown) > 8
    assert all(result[20, 20].sum() < result[2, 2].sum() for result in results)  # nuclei stay the darker part


def test_gray_tissue_gets_a_color_and_keeps_its_order() -> None:
    gray = np.repeat(np.linspace(120, 250, 64, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2)
    assert is_colorless(gray) and not is_colorless(tissue())
    stained = drawn(2, gray, strength=0.2, swap=1.0)
    assert not is_colorless(stained)
    assert (np.diff(stained.astype(int).sum(axis=2).reshape(-1)) >= 0).all()
    plain = drawn(2, gray, strength=0.2, swap=0.0)
    assert np.abs(plain.astype(int) - gray).max() < 80


def test_channel_order_only_reorders() -> None:
    image = tissue()
    with random_state(0, 5):
        rgb = RandomStains(1.0, 0.5, 1.0, "RGB").get_transform(image).apply_image(image)
    with random_state(0, 5):
        bgr = RandomStains(1.0, 0.5, 1.0, "BGR").get_transform(image).apply_image(image[:, :, ::-1])
    np.testing.assert_allclose(bgr[:, :, ::-1].astype(int), rgb, atol=1)


def test_geometry_stays_and_the_transform_waits_for_the_crop() -> None:
    image = tissue()
    chain = T.AugmentationList([RandomStains(1.0, 0.5), T.RandomFlip(prob=1.0), T.RandomCrop("absolute", (16, 16))])
    assert reads_only_size(chain.augs[0])
    with random_state(1, 1):
        plain = T.AugInput(image.copy())
        chain(plain)
    with random_state(1, 1):
        deferred = DeferredInput(image)
        transforms = deferred.augment(chain)
    np.testing.assert_array_equal(deferred.pixels(), plain.image)
    assert index_map(transforms, (40, 40)) is not None
    points = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(transforms.transforms[0].apply_coords(points), points)


def test_probability_is_that_of_images() -> None:
    image = tissue()
    with random_state(0, 0):
        kinds = [type(RandomStains(0.25).get_transform(image)) for _ in range(400)]
    assert 70 < kinds.count(StainTransform) < 130


def test_images_without_pixels() -> None:
    empty = np.zeros((0, 5, 3), np.uint8)
    assert is_colorless(empty) and drawn(0, empty).shape == (0, 5, 3)
