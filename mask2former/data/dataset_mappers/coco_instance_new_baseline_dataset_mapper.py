"""INPUT.DATASET_MAPPER_NAME "coco_instance_lsj": COCO instance segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable

from ...structures.masks import check_polygons, paste, polygons_to_patches
from .augmentations import build_transform_gen
from .composition import SceneComposer
from .segmentation_mapper import Augmentations, SegmentationMapper
from .targets import InstanceTargets, Targets


def convert_coco_poly_to_mask(segmentations: Sequence[Any], height: int, width: int) -> torch.Tensor:
    """Rasterize polygons as pycocotools does; the name and the type are those of the reference implementation.

    Args:
        segmentations: the polygons of each of N objects, flat lists or arrays x0, y0, x1, y1, ... in pixels; an object
            without polygons has an empty mask.
        height: H.
        width: W.

    Returns:
        uint8 (N, H, W), 1 inside; masks of samples are bool.

    Raises:
        SegmentationError: a polygon has less than three points, or an odd number of values.
    """
    size = (height, width)
    objects = [check_polygons(polygons, size) if len(polygons) else [] for polygons in segmentations]
    return torch.from_numpy(paste(polygons_to_patches(objects, size), size)).to(torch.uint8)


class COCOInstanceNewBaselineDatasetMapper(SegmentationMapper):
    """Large-scale jitter ("new baseline" in detectron2), and a mask for each instance annotation.

    Reads "annotations" of a record. Instances outside the crop and crowd regions are dropped, as in the training of
    the published models. A record without "annotations" gives a sample without "instances", or with
    `annotations_required` an error, as in the mapper of `build_mapper`. Samples have "padding_mask".

    Args:
        is_train: build targets.
        tfm_gens: the augmentations, in order.
        image_format: order of the channels, "RGB" or "BGR".
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.
    """

    with_padding_mask = True
    annotations_required = False
    num_classes: int | None = None

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        tfm_gens: Augmentations,
        image_format: str,
        num_classes: int | None = None,
    ) -> None:
        self.num_classes = num_classes
        super().__init__(is_train, augmentations=tfm_gens, image_format=image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config; `build_mapper` adds the number of classes."""
        return {
            "is_train": is_train,
            "tfm_gens": build_transform_gen(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def use_config(self, cfg: CfgNode) -> None:
        """Take the number of classes and the composition of scenes; make missing annotations an error."""
        if self.num_classes is None:
            self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.annotations_required = True
        self.composer = SceneComposer.from_config(cfg)

    def make_targets(self) -> Targets:
        """Build `InstanceTargets` of `num_classes` and `annotations_required`."""
        return InstanceTargets(self.num_classes, required=self.annotations_required)
