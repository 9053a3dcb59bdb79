"""Augmentations of clips: some are drawn once for all frames of a clip, others for each frame."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..sampler import random_state
from ..transforms import ResizeShortestEdge, flip_augmentations

# By the names of INPUT.AUGMENTATIONS: factors in [0.9, 1.1]; rotations by up to 15 degrees around a point near the
# center.
EXTRA_AUGMENTATIONS = {
    "brightness": lambda: T.RandomBrightness(0.9, 1.1),
    "contrast": lambda: T.RandomContrast(0.9, 1.1),
    "saturation": lambda: T.RandomSaturation(0.9, 1.1),
    "rotation": lambda: T.RandomRotation([-15, 15], expand=False, center=[(0.4, 0.4), (0.6, 0.6)]),
}


class ClipAugmentation(T.Augmentation):
    """Draws the same random numbers for every frame of a clip; `start_clip` starts the next clip.

    Values computed from the image (the mean gray of the contrast) are still those of each frame.

    Args:
        augmentation: its `get_transform` takes only the image.
    """

    def __init__(self, augmentation: T.Augmentation) -> None:
        super().__init__()
        self.augmentation = augmentation
        self.seed = 0

    def start_clip(self) -> None:
        """Draw the seed of the next clip from numpy's global state."""
        self.seed = int(np.random.randint(2**31))

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform for one frame."""
        with random_state(self.seed):
            return self.augmentation.get_transform(image)


class ClipCrop(ClipAugmentation):
    """A random crop of one size for all frames of a clip, at one position, or (`moving`) at a new one in each.

    Args:
        augmentation: the crop.
        moving: draw the position for each frame.
    """

    def __init__(self, augmentation: T.RandomCrop, moving: bool = False) -> None:
        super().__init__(augmentation)
        self.moving = moving

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the crop of one frame."""
        crop = super().get_transform(image)
        if not self.moving:
            return crop
        height, width = image.shape[:2]
        left, top = np.random.randint(width - crop.w + 1), np.random.randint(height - crop.h + 1)
        return T.CropTransform(int(left), int(top), crop.w, crop.h)


def start_clip(augmentations: Iterable[T.Augmentation | T.Transform]) -> None:
    """Draw the random numbers that all frames of the next clip share."""
    for augmentation in augmentations:
        if isinstance(augmentation, ClipAugmentation):
            augmentation.start_clip()


def clip_augmentations(cfg: CfgNode, still: bool = False) -> list[T.Augmentation]:
    """Build the augmentations that INPUT configures, in order: size, crop, flip, then those of INPUT.AUGMENTATIONS.

    The frames of a clip always have one size, with and without "_by_clip" in INPUT.MIN_SIZE_TRAIN_SAMPLING. The flip
    is drawn once for a clip if INPUT.RANDOM_FLIP is "flip_by_clip", else for each frame.

    Args:
        cfg: INPUT is read.
        still: the clip is one image repeated. INPUT.AUGMENTATIONS and the position of the crop are then drawn for each
            frame, which simulates motion; otherwise once for the clip.

    Raises:
        ValueError: an unknown value.
    """
    settings = cfg.INPUT
    sampling = settings.MIN_SIZE_TRAIN_SAMPLING.removesuffix("_by_clip")
    if sampling not in ("choice", "range"):
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {settings.MIN_SIZE_TRAIN_SAMPLING!r}, use 'choice_by_clip' (one of the "
            "sizes of MIN_SIZE_TRAIN) or 'range_by_clip' (any size between its two)"
        )
    resize = ResizeShortestEdge(settings.MIN_SIZE_TRAIN, settings.MAX_SIZE_TRAIN, sampling)
    augmentations: list[T.Augmentation] = [ClipAugmentation(resize)]
    if settings.CROP.ENABLED:
        augmentations.append(ClipCrop(T.RandomCrop(settings.CROP.TYPE, settings.CROP.SIZE), moving=still))
    by_clip = settings.RANDOM_FLIP == "flip_by_clip"
    flips = flip_augmentations("horizontal" if by_clip else settings.RANDOM_FLIP)
    augmentations.extend(ClipAugmentation(flip) if by_clip else flip for flip in flips)
    for name in settings.AUGMENTATIONS:
        if name not in EXTRA_AUGMENTATIONS:
            known = ", ".join(EXTRA_AUGMENTATIONS)
            raise ValueError(f"INPUT.AUGMENTATIONS has {name!r}, use names of {known}")
        extra = EXTRA_AUGMENTATIONS[name]()
        augmentations.append(extra if still else ClipAugmentation(extra))
    return augmentations
