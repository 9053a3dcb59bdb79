"""INPUT.DATASET_MAPPER_NAME "mask_former_instance": instances of ADE20K, Cityscapes, Mapillary and custom datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from .augmentations import pad_to_square, resize_for_inference, shortest_edge_crop
from .segmentation_mapper import SegmentationMapper
from .targets import InstanceTargets


class MaskFormerInstanceDatasetMapper(SegmentationMapper):
    """A crop after a resize of the shortest edge, and a mask for each instance annotation.

    Reads "annotations" of a record. Instances outside the crop and crowd regions are dropped.
    INPUT.CROP.SINGLE_CATEGORY_MAX_AREA has no effect: instance annotations do not label the other pixels.

    Args:
        is_train: build targets.
        augmentations: applied in order, before the padding.
        image_format: order of the channels, "RGB" or "BGR".
        size_divisibility: see `pad_to_square`.
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        size_divisibility: int,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(
            is_train,
            augmentations=[*augmentations, *pad_to_square(size_divisibility)],
            targets=InstanceTargets(num_classes),
            image_format=image_format,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config."""
        return {
            "is_train": is_train,
            "augmentations": shortest_edge_crop(cfg) if is_train else resize_for_inference(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY if is_train else -1,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }
