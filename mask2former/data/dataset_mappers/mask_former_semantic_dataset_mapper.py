"""INPUT.DATASET_MAPPER_NAME "mask_former_semantic": datasets with label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from .augmentations import mixed_category_crop, pad_to_square, resize_for_inference, shortest_edge_crop
from .segmentation_mapper import SegmentationMapper
from .targets import SemanticTargets, dataset_ignore_label


class MaskFormerSemanticDatasetMapper(SegmentationMapper):
    """A crop after a resize of the shortest edge, and a mask for each class in the crop.

    Reads "sem_seg_file_name" of a record, and adds "sem_seg" to the sample, for models that classify pixels. Padding
    belongs to no class.

    Args:
        is_train: build targets.
        augmentations: applied in order, before the padding.
        image_format: order of the channels, "RGB" or "BGR".
        ignore_label: value of pixels without a class in the label maps.
        size_divisibility: see `pad_to_square`.
        num_classes: labels outside [0, num_classes) are errors; None for no upper bound.
        ignore_value: value of pixels without a class in "sem_seg"; None for `ignore_label`.
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
        ignore_value: int | None = None,
    ) -> None:
        super().__init__(
            is_train,
            augmentations=[*augmentations, *pad_to_square(size_divisibility, ignore_label)],
            targets=SemanticTargets(num_classes, ignore_label, ignore_label if ignore_value is None else ignore_value),
            image_format=image_format,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config; see `mixed_category_crop` for the crop."""
        head = cfg.MODEL.SEM_SEG_HEAD
        ignore_label = dataset_ignore_label(cfg) if is_train else head.IGNORE_VALUE
        crop = mixed_category_crop(cfg, ignore_label)
        return {
            "is_train": is_train,
            "augmentations": shortest_edge_crop(cfg, crop) if is_train else resize_for_inference(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": ignore_label,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY if is_train else -1,
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
        }
