"""Augmentations of clips: some are drawn once for all frames of a clip, others for each frame."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..deferred_image import reads_only_size
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

    @property
    def reads_only_size(self) -> bool:
        """Return whether the transform is drawn without a look at the pixels."""
        return type(self) is ClipAugmentation and reads_only_size(self.augmentation)

    def start_clip(self) -> None:
        """Draw the seed of the next clip from numpy's global state."""
        self.seed = int(np.random.randint(2**31))

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform for one frame."""
        with random_state(self.seed):
            return self.augmentation.get_transform(image)


def start_clip(augmentations: Iterable[T.Augmentation | T.Transform] | T.AugmentationList) -> None:
    """Draw the random numbers that all frames of the next clip share."""
    for augmentation in augmentations.augs if isinstance(augmentations, T.AugmentationList) else augmentations:
        if isinstance(augmentation, ClipAugmentation):
            augmentation.start_clip()
        elif isinstance(augmentation, T.AugmentationList):
            start_clip(augmentation)


def clip_augmentations(cfg: CfgNode, still: bool = False) -> list[T.Augmentation]:
    """Build the augmentations that INPUT configures, in order: crop, size, flip, then those of INPUT.AUGMENTATIONS.

    The shortest edge is drawn once for a clip, with and without "_by_clip" in INPUT.MIN_SIZE_TRAIN_SAMPLING. Position
    and, for the ranges, size of the crop are drawn for each frame, as in the reference implementation, or with
    "_by_clip" in INPUT.CROP.TYPE once for a clip. The flip is drawn once for a clip if INPUT.RANDOM_FLIP is
    "flip_by_clip", else for each frame.

    Args:
        cfg: INPUT is read.
        still: the clip is one image repeated. INPUT.AUGMENTATIONS are then drawn for each frame, which simulates
            motion; otherwise once for the clip.

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
    augmentations: list[T.Augmentation] = []
    if settings.CROP.ENABLED:
        crop = T.RandomCrop(settings.CROP.TYPE.removesuffix("_by_clip"), settings.CROP.SIZE)
        augmentations.append(ClipAugmentation(crop) if settings.CROP.TYPE.endswith("_by_clip") else crop)
    resize = ResizeShortestEdge(settings.MIN_SIZE_TRAIN, settings.MAX_SIZE_TRAIN, sampling)
    augmentations.append(ClipAugmentation(resize))
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
