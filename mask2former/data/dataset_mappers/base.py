"""What all mappers share: a record of a dataset becomes a sample for the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from ...errors import BadRecordError
from ...structures.masks import Patch, boxes_from_patches, paste
from ..image_io import IMAGE_FORMATS, check_image_size, read_image
from ..transforms import ResizeShortestEdge

logger = logging.getLogger(__name__)

# What only training targets need; big, and it would travel between processes for nothing.
_TARGET_KEYS = ("annotations", "segments_info", "pan_seg_file_name", "sem_seg_file_name")


class Frame(NamedTuple):
    """One picture on its way: what a mapper needs to carry masks along."""

    size: tuple[int, int]  # height and width of the file
    transforms: T.TransformList  # what was done to it
    new_size: tuple[int, int]  # height and width of the result
    labels: np.ndarray | None = None  # label map (H, W) of the result, where the mapper reads one


class SegmentationMapper:
    """Read a picture, augment it, and in training make targets; subclasses say how masks are found.

    With `is_train=False` it is itself the mapper for inference.

    Args:
        is_train: make targets; otherwise annotations are left out of the sample.
        augmentations: applied in order; masks are padded with 0.
        image_format: order of the channels, "RGB" or "BGR".
        num_classes: where given, classes outside [0, num_classes) are errors.
        drop_empty: leave out objects of which the augmentations left nothing.
        ignore_label: what pixels without a class have in label pictures.
        ignore_value: what they get in the sample's "sem_seg".
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        num_classes: int | None = None,
        drop_empty: bool = True,
        ignore_label: int = 255,
        ignore_value: int = 255,
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            raise ValueError(f"INPUT.FORMAT is {image_format!r}, use one of {', '.join(IMAGE_FORMATS)}")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.drop_empty = drop_empty
        self.ignore_label = ignore_label
        self.ignore_value = ignore_value
        mode = "training" if is_train else "inference"
        logger.info("%s: augmentations in %s: %s", type(self).__name__, mode, list(augmentations))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Keywords of the constructor from a config."""
        augmentations = cls.train_augmentations(cfg) if is_train else cls.test_augmentations(cfg)
        ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": dataset_ignore_label(cfg) if is_train else ignore_value,
            "ignore_value": ignore_value,
        }

    @classmethod
    def train_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        """Augmentations of training, in order."""
        raise NotImplementedError(
            f"{cls.__name__} is for inference; choose a mapper with INPUT.DATASET_MAPPER_NAME"
        )

    @classmethod
    def test_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        """Resize to INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, as detectron2's default mapper does."""
        return [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            record: in detectron2's format; not changed.

        Returns:
            The record's entries and "image" uint8 (3, H, W), "height" and "width" of the file, and in
            training "instances" with gt_classes int64 (N,), gt_masks bool (N, H, W) and gt_boxes of these.
            What a kind of target adds is said there.
            In training annotations are left out; at inference only "annotations" is.

        Raises:
            BadRecordError: picture or annotations cannot be used.
        """
        dropped = _TARGET_KEYS if self.is_train else ("annotations",)
        sample = {key: value for key, value in record.items() if key not in dropped}
        sample["image"], frame = self.augmented(record, sample)
        if self.is_train:
            classes, patches = self.targets(record, frame)
            sample["instances"] = self.instances(classes, patches, frame.new_size)
            sample.update(self.more_targets(frame))
        return sample

    def augmented(self, record: dict[str, Any], sample: dict[str, Any]) -> tuple[torch.Tensor, Frame]:
        """Read the picture of a record and augment it: uint8 (3, H, W), and what masks need to follow.

        The size of the file is compared with "height" and "width" of `sample`, which gets them where it has none.

        Raises:
            BadRecordError: picture or label map cannot be used, or the sizes differ.
        """
        path = record.get("file_name", "")
        image = read_image(path, self.image_format)
        size = image.shape[:2]
        check_image_size(sample, size, path)
        inputs = T.AugInput(image, sem_seg=self.label_map(record, size) if self.is_train else None)
        transforms = self.augmentations(inputs)
        image = inputs.image
        # copy() also turns read-only and negative-stride arrays into what torch can take
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
        return pixels, Frame(size, transforms, image.shape[:2], inputs.sem_seg)

    def label_map(self, record: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
        """The label of every pixel, floating point (H, W), to go through the augmentations with the picture.

        None where neither targets nor augmentations need it. As floats, labels are resized by detectron2 as
        they were for the published models.

        Raises:
            BadRecordError: the labels cannot be used.
        """
        return None

    def targets(self, record: dict[str, Any], frame: Frame) -> tuple[list[int], list[Patch]]:
        """Classes (N) and masks (N) of a record, the masks in the augmented picture.

        Raises:
            BadRecordError: the annotations cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no targets; use a training mapper")

    def more_targets(self, frame: Frame) -> dict[str, Any]:
        """What a sample has beside "instances"."""
        return {}

    def check_class(self, value: Any, file: str, where: str) -> int:
        """Return the contiguous class of an annotation.

        Raises:
            BadRecordError: no integer, or the model has no such class.
        """
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise BadRecordError(file, f"category_id {value!r} is not a class index", where)
        if self.num_classes is not None and value >= self.num_classes:
            reason = f"class {value} does not exist, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.num_classes}"
            raise BadRecordError(file, reason, where)
        return int(value)

    def instances(self, classes: list[int], patches: list[Patch], size: tuple[int, int]) -> Instances:
        """gt_classes (N,), gt_masks (N, H, W) and gt_boxes of objects in a picture of `size`."""
        if self.drop_empty:
            kept = [index for index, patch in enumerate(patches) if patch.bits.size]
            classes, patches = [classes[index] for index in kept], [patches[index] for index in kept]
        instances = Instances(size)
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        instances.gt_masks = torch.from_numpy(paste(patches, size))
        instances.gt_boxes = Boxes(boxes_from_patches(patches))
        return instances


def dataset_ignore_label(cfg: CfgNode) -> int:
    """What pixels without a class have in the label pictures of DATASETS.TRAIN.

    The `ignore_label` in the metadata of the datasets, or MODEL.SEM_SEG_HEAD.IGNORE_VALUE.

    Raises:
        ValueError: the datasets differ.
    """
    found = {
        name: MetadataCatalog.get(name).ignore_label
        for name in cfg.DATASETS.TRAIN
        if name in DatasetCatalog and MetadataCatalog.get(name).get("ignore_label") is not None
    }
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name}: {label}" for name, label in found.items())
        raise ValueError(
            f"DATASETS.TRAIN: the datasets mark pixels without a class differently ({each}); train on datasets "
            "with the same ignore_label in their metadata"
        )
    return next(iter(found.values()), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
