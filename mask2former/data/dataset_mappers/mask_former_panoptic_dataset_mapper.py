"""INPUT.DATASET_MAPPER_NAME "mask_former_panoptic": ADE20K, Cityscapes, Mapillary and custom datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from .augmentations import mixed_category_crop, pad_to_square, resize_for_inference, shortest_edge_crop
from .segmentation_mapper import SegmentationMapper
from .targets import PanopticTargets, dataset_ignore_label


class MaskFormerPanopticDatasetMapper(SegmentationMapper):
    """The augmentations of the semantic mapper, and a mask for each segment, things and stuff.

    Reads "pan_seg_file_name" and "segments_info" of a record. Segments outside the crop stay as empty masks, as
    in the training of the published models; crowd segments are dropped.

    Args:
        is_train: build targets.
        augmentations: applied in order, before the padding.
        image_format: order of the channels, "RGB" or "BGR".
        ignore_label: value of pixels without a class in label maps, which only the crop may need.
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
        ignore_label: int,
        size_divisibility: int,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(
            is_train,
            augmentations=[*augmentations, *pad_to_square(size_divisibility)],
            targets=PanopticTargets(num_classes, ignore_label),
            image_format=image_format,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config; see `mixed_category_crop` for the crop."""
        ignore_label = dataset_ignore_label(cfg) if is_train else cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        crop = mixed_category_crop(cfg, ignore_label)
        return {
            "is_train": is_train,
            "augmentations": shortest_edge_crop(cfg, crop) if is_train else resize_for_inference(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": ignore_label,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY if is_train else -1,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }
