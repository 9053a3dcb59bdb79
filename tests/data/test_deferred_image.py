"""Deferred transforms give what detectron2 gives, which transforms the complete image after every augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T

from mask2former.data import deferred_image
from mask2former.data.dataset_mappers.clip_augmentation import ClipAugmentation
from mask2former.data.deferred_image import DeferredInput, reads_only_size
from mask2former.data.sampler import random_state
from mask2former.data.transforms import (
    ColorAugSSD,
    PadToSquare,
    RandomRot90,
    ResizeScale,
    ResizeShortestEdge,
)


class Darken(T.Augmentation):
    """Reads the pixels, as a project's augmentation may."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        assert image.any()
        return T.BlendTransform(src_image=0, src_weight=0.3, dst_weight=float(image.mean()) / 255)


class Inverted(T.AugmentationList):
    """Changes the image without a transform."""

    def __call__(self, aug_input: Any) -> T.TransformList:
        aug_input.image = 255 - aug_input.image
        return super().__call__(aug_input)


def chains() -> list[list[Any]]:
    lsj = [T.RandomFlip(), ResizeScale(0.1, 2.0, 48, 48), T.FixedSizeCrop((48, 48), pad_value=128, seg_pad_value=0)]
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (24, 30), 0.75, 255)
    shortest = [ResizeShortestEdge([20, 60, 90], 120, "choice"), crop, ColorAugSSD(), T.RandomFlip(), PadToSquare(50)]
    clip = [
        T.RandomCrop("absolute", (20, 24)),
        ClipAugmentation(ResizeShortestEdge([40], 99, "choice")),
        T.RandomFlip(),
    ]
    return [
        lsj,
        [RandomRot90(), ColorAugSSD("BGR"), *lsj, RandomRot90()],
        shortest,
        [*clip, ClipAugmentation(T.RandomContrast(0.8, 1.2)), T.RandomRotation([-15, 15], expand=False)],
        [Darken(), *lsj[:2], Darken(), lsj[2], T.RandomFlip(horizontal=False, vertical=True)],
        [
            T.HFlipTransform(1),
            Inverted(lsj[:2]),
            T.AugmentationList(lsj),
            T.Resize((70, 30)),
            T.RandomBrightness(0.5, 1),
        ],
        [T.ResizeScale(1.5, 2, 48, 48), T.NoOpTransform(), T.RandomCrop("relative_range", (0.5, 0.5)), PadToSquare(33)],
    ]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("number", range(len(chains())))
def test_images_and_label_maps_are_detectron2s(number: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(deferred_image, "resizes_windows", lambda transform, pixels: False)
    chain = T.AugmentationList(chains()[number])
    rng = np.random.default_rng(number)
    for seed in range(12):
        size = tuple(rng.integers(9, 60, 2).tolist())
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)[:, :, :: -1 if seed % 2 else 1]
        labels = rng.integers(0, 3, size).astype(np.float32)
        before = image.copy()
        with random_state(number, seed):
            plain = T.AugInput(image.copy(), sem_seg=labels.copy())
            expected = chain(plain)
        with random_state(number, seed):
            deferred = DeferredInput(image, sem_seg=labels)
            transforms = deferred.augment(chain)
        assert [type(t) for t in transforms.transforms] == [type(t) for t in expected.transforms]
        np.testing.assert_array_equal(deferred.sem_seg, plain.sem_seg)
        np.testing.assert_array_equal(deferred.pixels(), plain.image)
        np.testing.assert_array_equal(deferred.image, plain.image)
        np.testing.assert_array_equal(image, before)


def test_only_known_augmentations_go_without_the_pixels() -> None:
    class Flip(T.RandomFlip):
        pass

    assert reads_only_size(T.RandomFlip()) and reads_only_size(ClipAugmentation(T.RandomFlip()))
    assert not reads_only_size(Flip()) and not reads_only_size(ClipAugmentation(Flip()))
    assert not reads_only_size(T.RandomContrast(0.5, 1)) and not reads_only_size(Darken())


def test_boxes_follow() -> None:
    inputs = DeferredInput(np.zeros((10, 20, 3), np.uint8))
    inputs.boxes = np.array([[1.0, 2, 5, 6]])
    inputs.augment(T.AugmentationList([T.HFlipTransform(20), T.ResizeTransform(10, 20, 20, 40)]))
    assert inputs.boxes.tolist() == [[30, 4, 38, 12]] and inputs.image.shape == (20, 40, 3)


def test_an_image_of_another_size_than_the_transform_expects_is_refused() -> None:
    inputs = DeferredInput(np.zeros((10, 20, 3), np.uint8))
    inputs.augment(T.AugmentationList([T.ResizeTransform(10, 21, 20, 40)]))
    with pytest.raises(AssertionError):
        inputs.pixels()
