"""INPUT.DATASET_MAPPER_NAME "mask_former_semantic": datasets with label maps."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from .augmentations import mixed_category_crop, pad_to_square, resize_for_inference, shortest_edge_crop
from .segmentation_mapper import Augmentations, SegmentationMapper
from .targets import SemanticTargets, Targets, dataset_ignore_label


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

    ignore_label = 255
    size_divisibility = -1
    num_classes: int | None = None
    ignore_value: int | None = None

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Augmentations,
        image_format: str,
        ignore_label: int,
        size_divisibility: int,
        num_classes: int | None = None,
        ignore_value: int | None = None,
    ) -> None:
        self.ignore_label = ignore_label
        self.size_divisibility = size_divisibility
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        super().__init__(is_train, augmentations=augmentations, image_format=image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config; see `mixed_category_crop` for the crop.

        `build_mapper` adds the number of classes and `ignore_value`.
        """
        ignore_label = dataset_ignore_label(cfg) if is_train else cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        crop = mixed_category_crop(cfg, ignore_label)
        return {
            "is_train": is_train,
            "augmentations": shortest_edge_crop(cfg, crop) if is_train else resize_for_inference(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": ignore_label,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY if is_train else -1,
        }

    def use_config(self, cfg: CfgNode) -> None:
        """Take the number of classes and the value of ignored pixels from the config."""
        if self.num_classes is None:
            self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if self.ignore_value is None:
            self.ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE

    def make_targets(self) -> Targets:
        """Build `SemanticTargets` of `num_classes`, `ignore_label` and `ignore_value`."""
        ignore_value = self.ignore_label if self.ignore_value is None else self.ignore_value
        return SemanticTargets(self.num_classes, self.ignore_label, ignore_value)

    def padding(self) -> list[T.Augmentation]:
        """Build the padding to a square of `size_divisibility` pixels, `ignore_label` in label maps."""
        return pad_to_square(self.size_divisibility, self.ignore_label)
