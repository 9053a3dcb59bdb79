"""Mappers of clips with the constructors of the reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from .._sibling import core
from .augmentation import build_augmentation, build_pseudo_augs

_mappers = core("data.dataset_mappers.clip_mappers")
_YTVISDatasetMapper: Any = _mappers.YTVISDatasetMapper
_CocoClipDatasetMapper: Any = _mappers.CocoClipDatasetMapper
_targets = core("data.dataset_mappers.targets")

__all__ = ["CocoClipDatasetMapper", "YTVISDatasetMapper", "build_pseudo_augs", "filter_empty_instances"]


class Augmentations(list[Any]):
    """List of augmentations that can be called like detectron2's `AugmentationList`."""

    def __call__(self, aug_input: Any) -> T.Transform:
        """Augment the input in place and return the transforms."""
        return T.AugmentationList(list(self))(aug_input)


class YTVISDatasetMapper(_YTVISDatasetMapper):
    """`mask2former.YTVISDatasetMapper`.

    Args:
        is_train: build targets.
        augmentations: of each frame.
        image_format: "RGB" or "BGR".
        use_instance_mask: kept as an attribute; there are always masks.
        sampling_frame_num, sampling_frame_range, sampling_frame_shuffle: as INPUT.SAMPLING_FRAME_*.
        num_classes: classes outside [0, num_classes) are errors.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[Any],
        image_format: str,
        use_instance_mask: bool = False,
        sampling_frame_num: int = 2,
        sampling_frame_range: int = 5,
        sampling_frame_shuffle: bool = False,
        num_classes: int = 40,
    ) -> None:
        super().__init__(
            is_train,
            augmentations=augmentations,
            targets=_targets.InstanceTargets(num_classes),
            image_format=image_format,
            sampling_frame_num=sampling_frame_num,
            sampling_frame_range=sampling_frame_range,
            sampling_frame_shuffle=sampling_frame_shuffle,
        )
        self.augmentations = Augmentations(augmentations)
        self.use_instance_mask = use_instance_mask
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config."""
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "sampling_frame_num": cfg.INPUT.SAMPLING_FRAME_NUM,
            "sampling_frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE,
            "sampling_frame_shuffle": cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }


class CocoClipDatasetMapper(_CocoClipDatasetMapper):
    """`mask2former.CocoClipDatasetMapper`.

    Args:
        is_train, augmentations, image_format, use_instance_mask, sampling_frame_num: as of `YTVISDatasetMapper`.
        sampling_frame_range: without effect, the frames are one image.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[Any],
        image_format: str,
        use_instance_mask: bool = False,
        sampling_frame_num: int = 2,
        sampling_frame_range: int = 5,
    ) -> None:
        super().__init__(
            is_train,
            augmentations=augmentations,
            targets=_targets.InstanceTargets(),
            image_format=image_format,
            sampling_frame_num=sampling_frame_num,
            sampling_frame_range=sampling_frame_range,
        )
        self.augmentations = Augmentations(augmentations)
        self.use_instance_mask = use_instance_mask

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config."""
        return {
            "is_train": is_train,
            "augmentations": build_pseudo_augs(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "sampling_frame_num": cfg.INPUT.SAMPLING_FRAME_NUM,
            "sampling_frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE,
        }


def filter_empty_instances(
    instances: Instances, by_box: bool = True, by_mask: bool = True, box_threshold: float = 1e-5
) -> Instances:
    """Mark the objects of a frame that are not visible: their `gt_ids` become -1. All rows stay.

    Args:
        instances: with `gt_ids` int64 (N,), `gt_boxes` and, for `by_mask`, `gt_masks`. Changed in place.
        by_box: an object with a side of its box below `box_threshold` pixels is not visible.
        by_mask: an object with an empty mask is not visible.
    """
    visible = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        visible &= instances.gt_boxes.nonempty(threshold=box_threshold).cpu()
    if by_mask and instances.has("gt_masks"):
        visible &= BitMasks(getattr(instances.gt_masks, "tensor", instances.gt_masks)).nonempty().cpu()
    instances.gt_ids[~visible.to(instances.gt_ids.device)] = -1
    return instances
