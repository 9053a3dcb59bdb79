"""The augmentations of the ADE20K, Cityscapes and Mapillary models, for the three kinds of ground truth."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..transforms import ColorAugSSD, PadToSquare, RandomRot90, ResizeShortestEdge, flip_augmentations
from .base import SegmentationMapper, dataset_ignore_label
from .targets import InstanceTargets, PanopticTargets, SemanticTargets


class ShortSideCrop(SegmentationMapper):
    """Resize the short side, crop (INPUT.CROP), colours (INPUT.COLOR_AUG_SSD), flip, and pad.

    The padding reaches to a square of INPUT.SIZE_DIVISIBILITY pixels (a size, despite its name; -1 for none).
    Larger pictures are not cut. INPUT.RANDOM_ROT90 adds turns after the flip.
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
            augmentations.append(cls.crop(cfg))
        if settings.COLOR_AUG_SSD:
            augmentations.append(ColorAugSSD(settings.FORMAT))
        augmentations.extend(flip_augmentations(settings.RANDOM_FLIP))
        if settings.RANDOM_ROT90:
            augmentations.append(RandomRot90())
        if settings.SIZE_DIVISIBILITY > 0:
            augmentations.append(PadToSquare(settings.SIZE_DIVISIBILITY, cls.label_padding(cfg)))
        return augmentations

    @classmethod
    def crop(cls, cfg: CfgNode) -> T.Augmentation:
        """The crop that INPUT.CROP asks for."""
        return T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)

    @classmethod
    def label_padding(cls, cfg: CfgNode) -> int:
        """The label of padded pixels."""
        return 0


class MaskFormerInstanceDatasetMapper(ShortSideCrop, InstanceTargets):
    """INPUT.DATASET_MAPPER_NAME "mask_former_instance"."""


class MaskFormerSemanticDatasetMapper(ShortSideCrop, SemanticTargets):
    """INPUT.DATASET_MAPPER_NAME "mask_former_semantic".

    With INPUT.CROP.SINGLE_CATEGORY_MAX_AREA below 1, up to ten crops are tried until no class covers more
    than this share of the labelled pixels.
    """

    @classmethod
    def crop(cls, cfg: CfgNode) -> T.Augmentation:
        """The crop that INPUT.CROP asks for."""
        settings = cfg.INPUT.CROP
        if settings.SINGLE_CATEGORY_MAX_AREA >= 1:
            return super().crop(cfg)
        return T.RandomCrop_CategoryAreaConstraint(
            settings.TYPE, settings.SIZE, settings.SINGLE_CATEGORY_MAX_AREA, dataset_ignore_label(cfg)
        )

    @classmethod
    def label_padding(cls, cfg: CfgNode) -> int:
        """The label of padded pixels."""
        return dataset_ignore_label(cfg)


class MaskFormerPanopticDatasetMapper(PanopticTargets, MaskFormerSemanticDatasetMapper):
    """INPUT.DATASET_MAPPER_NAME "mask_former_panoptic": the semantic augmentations, panoptic targets."""

    @classmethod
    def label_padding(cls, cfg: CfgNode) -> int:
        """The label of padded pixels: void."""
        return 0
