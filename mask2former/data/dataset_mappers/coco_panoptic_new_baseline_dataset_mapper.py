"""INPUT.DATASET_MAPPER_NAME "coco_panoptic_lsj": COCO panoptic segmentation."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable

from .augmentations import build_transform_gen
from .segmentation_mapper import Augmentations, SegmentationMapper
from .targets import PanopticTargets, Targets, dataset_ignore_label


class COCOPanopticNewBaselineDatasetMapper(SegmentationMapper):
    """Large-scale jitter ("new baseline" in detectron2), and a mask for each segment, things and stuff.

    Reads "pan_seg_file_name" and "segments_info" of a record. Segments outside the crop stay as empty masks, as
    in the training of the published models; crowd segments are dropped. A record without "pan_seg_file_name" gives a
    sample without "instances", or with `annotations_required` an error, as in the mapper of `build_mapper`. Samples
    have "padding_mask".

    Args:
        is_train: build targets.
        tfm_gens: the augmentations, in order.
        image_format: order of the channels, "RGB" or "BGR".
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.
        ignore_label: value of pixels without a class in label maps, which only an augmentation may need.
    """

    with_padding_mask = True
    annotations_required = False
    num_classes: int | None = None
    ignore_label = 255

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        tfm_gens: Augmentations,
        image_format: str,
        num_classes: int | None = None,
        ignore_label: int = 255,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        super().__init__(is_train, augmentations=tfm_gens, image_format=image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config; `build_mapper` adds classes and ignore label."""
        return {
            "is_train": is_train,
            "tfm_gens": build_transform_gen(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def use_config(self, cfg: CfgNode) -> None:
        """Take the number of classes and the ignore label from the config; missing annotations become an error."""
        if self.num_classes is None:
            self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.ignore_label = dataset_ignore_label(cfg)
        self.annotations_required = True

    def make_targets(self) -> Targets:
        """Build `PanopticTargets` of `num_classes`, `ignore_label` and `annotations_required`."""
        return PanopticTargets(self.num_classes, self.ignore_label, required=self.annotations_required)
