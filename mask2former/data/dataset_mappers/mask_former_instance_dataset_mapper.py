"""INPUT.DATASET_MAPPER_NAME "mask_former_instance": instances of ADE20K, Cityscapes, Mapillary and custom datasets."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ...utils.signatures import fitting
from .augmentations import pad_to_square, resize_for_inference, shortest_edge_crop
from .composition import SceneComposer
from .segmentation_mapper import Augmentations, SegmentationMapper
from .targets import InstanceTargets, Targets


class MaskFormerInstanceDatasetMapper(SegmentationMapper):
    """A crop after a resize of the shortest edge, and a mask for each instance annotation.

    Reads "annotations" of a record. Instances outside the crop stay as empty masks, as in the training of the published
    models, or are dropped with INPUT.KEEP_EMPTY_INSTANCES False; crowd regions are always dropped.
    INPUT.CROP.SINGLE_CATEGORY_MAX_AREA has no effect: instance annotations do not label the other pixels.

    Args:
        is_train: build targets.
        augmentations: applied in order, before the padding.
        image_format: order of the channels, "RGB" or "BGR".
        size_divisibility: see `pad_to_square`.
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.
        keep_empty: keep objects that the augmentations removed from the image, with an empty mask.
    """

    size_divisibility = -1
    num_classes: int | None = None
    keep_empty = True

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Augmentations,
        image_format: str,
        size_divisibility: int,
        num_classes: int | None = None,
        keep_empty: bool = True,
    ) -> None:
        self.size_divisibility = size_divisibility
        self.num_classes = num_classes
        self.keep_empty = keep_empty
        super().__init__(is_train, augmentations=augmentations, image_format=image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config; `build_mapper` adds the number of classes.

        INPUT.KEEP_EMPTY_INSTANCES is among them only where it is not the default, so that a subclass which lists the
        keywords of the reference implementation works.
        """
        arguments = {
            "is_train": is_train,
            "augmentations": shortest_edge_crop(cfg) if is_train else resize_for_inference(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY if is_train else -1,
        }
        changed = {} if cfg.INPUT.KEEP_EMPTY_INSTANCES else {"keep_empty": False}
        return fitting(cls, arguments | changed, {"keep_empty": True})

    def use_config(self, cfg: CfgNode) -> None:
        """Take the number of classes and the composition of scenes from the config."""
        if self.num_classes is None:
            self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.composer = SceneComposer.from_config(cfg)

    def make_targets(self) -> Targets:
        """Build `InstanceTargets` of `num_classes` and `keep_empty`."""
        return InstanceTargets(self.num_classes, drop_empty=not self.keep_empty)

    def padding(self) -> list[T.Augmentation]:
        """Build the padding to a square of `size_divisibility` pixels."""
        return pad_to_square(self.size_divisibility)
