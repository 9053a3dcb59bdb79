"""Large-scale jittering (Ghiasi et al., CVPR 2021), the recipe of the COCO models: scale, then crop."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..transforms import IMAGE_PAD_VALUE, ColorAugSSD, RandomRot90, ResizeScale, flip_augmentations
from .base import SegmentationMapper
from .targets import InstanceTargets, PanopticTargets


class LargeScaleJitter(SegmentationMapper):
    """Flip, scale by INPUT.MIN_SCALE to MAX_SCALE, crop or pad to INPUT.IMAGE_SIZE.

    The crop draws one number for both axes, so it lies on the diagonal of the picture; the published models
    were trained with that. INPUT.RANDOM_ROT90 and INPUT.COLOR_AUG_SSD add turns and colours, before scaling,
    so that the padding stays grey.
    """

    @classmethod
    def train_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        """Augmentations of training, in order."""
        side = cfg.INPUT.IMAGE_SIZE
        augmentations = flip_augmentations(cfg.INPUT.RANDOM_FLIP)
        if cfg.INPUT.RANDOM_ROT90:
            augmentations.append(RandomRot90())
        if cfg.INPUT.COLOR_AUG_SSD:
            augmentations.append(ColorAugSSD(cfg.INPUT.FORMAT))
        augmentations.append(ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side))
        augmentations.append(T.FixedSizeCrop((side, side), pad_value=IMAGE_PAD_VALUE, seg_pad_value=0))
        return augmentations


class COCOInstanceNewBaselineDatasetMapper(LargeScaleJitter, InstanceTargets):
    """INPUT.DATASET_MAPPER_NAME "coco_instance_lsj"."""


class COCOPanopticNewBaselineDatasetMapper(LargeScaleJitter, PanopticTargets):
    """INPUT.DATASET_MAPPER_NAME "coco_panoptic_lsj"."""
