"""Instance annotations with the augmentations of the ADE20K and Cityscapes models."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..transforms import ColorAugSSD, PadToSquare, RandomRot90, ResizeShortestEdge, flip_augmentations
from .targets import InstanceTargets


class MaskFormerInstanceDatasetMapper(InstanceTargets):
    """INPUT.DATASET_MAPPER_NAME "mask_former_instance".

    Resize the short side, crop (INPUT.CROP), colours (INPUT.COLOR_AUG_SSD), flip, and pad to a square of
    INPUT.SIZE_DIVISIBILITY pixels (a size, despite its name; -1 for none). Larger pictures are not cut.
    """

    @classmethod
    def train_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        """Augmentations of training, in order."""
        settings = cfg.INPUT
        augmentations: list[T.Augmentation] = [
            ResizeShortestEdge(
                settings.MIN_SIZE_TRAIN, settings.MAX_SIZE_TRAIN, settings.MIN_SIZE_TRAIN_SAMPLING
            )
        ]
        if settings.CROP.ENABLED:
            augmentations.append(T.RandomCrop(settings.CROP.TYPE, settings.CROP.SIZE))
        if settings.COLOR_AUG_SSD:
            augmentations.append(ColorAugSSD(settings.FORMAT))
        augmentations.extend(flip_augmentations(settings.RANDOM_FLIP))
        if settings.RANDOM_ROT90:
            augmentations.append(RandomRot90())
        if settings.SIZE_DIVISIBILITY > 0:
            augmentations.append(PadToSquare(settings.SIZE_DIVISIBILITY))
        return augmentations
