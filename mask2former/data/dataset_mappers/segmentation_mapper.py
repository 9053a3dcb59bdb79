"""The mapper of images, composed of augmentations and targets."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ..image_io import IMAGE_FORMATS, check_image_size, read_image
from .augmentations import resize_for_inference
from .targets import AugmentedImage, Record, Targets

logger = logging.getLogger(__name__)

# Only training targets need these entries; they are large and would be copied from the workers in vain.
_TARGET_KEYS = ("annotations", "segments_info", "pan_seg_file_name", "sem_seg_file_name")


class SegmentationMapper:
    """Reads an image, augments it, and in training transforms its ground truth in the same way.

    Compose a mapper of augmentations and targets. The five mappers of the reference implementation derive from this
    class and define both: `from_config` returns the arguments of their constructors, which build the targets. Built
    from a config with `is_train=False` it is the mapper for inference.

    The attribute `augmentations` is a list; it may be changed, or replaced by another or by an AugmentationList.

    Args:
        is_train: build targets; otherwise annotations are left out of the sample.
        augmentations: applied in order.
        targets: turns ground truth into training targets; None for inference.
        image_format: order of the channels, "RGB" or "BGR".

    Raises:
        ValueError: unknown `image_format`, or training without targets.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        targets: Targets | None = None,
        image_format: str = "RGB",
    ) -> None:
        check_image_format(image_format)
        if is_train and targets is None:
            raise ValueError(
                f"{type(self).__name__} has no targets to train on; pass targets=InstanceTargets() or custom ones"
            )
        self.is_train = is_train
        self.augmentations = list(augmentations)
        self.targets = targets
        self.image_format = image_format
        mode = "training" if is_train else "inference"
        logger.info("%s: augmentations in %s: %s", type(self).__name__, mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for inference.

        Raises:
            NotImplementedError: for training, which needs a subclass that defines targets.
        """
        if is_train:
            raise NotImplementedError(
                f"{cls.__name__} is for inference; choose a mapper with INPUT.DATASET_MAPPER_NAME"
            )
        return {"is_train": False, "augmentations": resize_for_inference(cfg), "image_format": cfg.INPUT.FORMAT}

    def __call__(self, record: Record) -> dict[str, Any]:
        """Map one record.

        Args:
            record: in detectron2's format; not changed.

        Returns:
            The record's entries and "image" uint8 (3, H, W), "height" and "width" of the file, and in training the
            `Targets.entries`: "instances", and "sem_seg" of label maps. Ground truth entries are dropped in training;
            at inference only "annotations" is, because evaluation reads the file names of the others.

        Raises:
            BadRecordError: the image or its annotations cannot be used.
        """
        targets = self.targets if self.is_train else None
        dropped = _TARGET_KEYS if self.is_train else ("annotations",)
        sample = {key: value for key, value in record.items() if key not in dropped}
        image = read_and_augment(record, sample, self.augmentations, self.image_format, targets)
        sample["image"] = image.to_tensor()
        if targets is not None:
            sample.update(targets.entries(record, image))
        return sample


def read_and_augment(
    record: Record,
    sample: dict[str, Any],
    augmentations: Sequence[T.Augmentation | T.Transform] | T.AugmentationList,
    image_format: str,
    targets: Targets | None = None,
) -> AugmentedImage:
    """Read the image of a record and augment it, together with the label map of the targets.

    Args:
        record: "file_name" is read.
        sample: its "height" and "width" are compared with the size of the file; if missing, they are set.
        augmentations: applied in order.
        image_format: order of the channels, "RGB" or "BGR".
        targets: may read a label map.

    Raises:
        BadRecordError: the image or the label map cannot be used, or the sizes differ.
    """
    path = record.get("file_name", "")
    pixels = read_image(path, image_format)
    size = pixels.shape[:2]
    check_image_size(sample, size, path)
    chain = augmentations if isinstance(augmentations, T.AugmentationList) else T.AugmentationList(augmentations)
    label_map = None
    if targets is not None:
        label_map = targets.label_map(record, size, any(_reads_label_map(augmentation) for augmentation in chain.augs))
    inputs = T.AugInput(pixels, sem_seg=label_map)
    transforms = chain(inputs)
    return AugmentedImage(inputs.image, size, transforms, inputs.sem_seg)


def check_image_format(image_format: str) -> None:
    """Check INPUT.FORMAT before the first image is read.

    Raises:
        ValueError: neither "RGB" nor "BGR".
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT is {image_format!r}, use one of {', '.join(IMAGE_FORMATS)}")


def _reads_label_map(augmentation: T.Augmentation) -> bool:
    return "sem_seg" in inspect.signature(augmentation.get_transform).parameters
