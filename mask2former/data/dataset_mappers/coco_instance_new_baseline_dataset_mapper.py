"""INPUT.DATASET_MAPPER_NAME "coco_instance_lsj": COCO instance segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from .augmentations import build_transform_gen
from .segmentation_mapper import SegmentationMapper
from .targets import InstanceTargets


class COCOInstanceNewBaselineDatasetMapper(SegmentationMapper):
    """Large-scale jitter ("new baseline" in detectron2), and a mask for each instance annotation.

    Reads "annotations" of a record. Instances outside the crop and crowd regions are dropped.

    Args:
        is_train: build targets.
        tfm_gens: the augmentations, in order.
        image_format: order of the channels, "RGB" or "BGR".
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        tfm_gens: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int | None = None,
    ) -> None:
        targets = InstanceTargets(num_classes)
        super().__init__(is_train, augmentations=tfm_gens, targets=targets, image_format=image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config."""
        return {
            "is_train": is_train,
            "tfm_gens": build_transform_gen(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }
