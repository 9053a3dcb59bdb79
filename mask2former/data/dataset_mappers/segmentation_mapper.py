"""The mapper of images, composed of augmentations and targets."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ..deferred_image import DeferredInput
from ..image_io import IMAGE_FORMATS, check_image_size, read_image
from .augmentations import resize_for_inference
from .composition import SceneComposer
from .targets import AugmentedImage, InstanceTargets, Record, Targets

logger = logging.getLogger(__name__)

# Only training targets need these entries; they are large and would be copied from the workers in vain.
_TARGET_KEYS = ("annotations", "segments_info", "pan_seg_file_name", "sem_seg_file_name")

Augmentations: TypeAlias = Sequence[T.Augmentation | T.Transform] | T.AugmentationList


class SegmentationMapper:
    """Reads an image, augments it, and in training transforms its ground truth in the same way.

    Compose a mapper of augmentations and targets. The five mappers of the reference implementation derive from this
    class: their `from_config` returns the arguments of their constructors, and their targets and padding are made of
    their attributes for each sample. Built from a config with `is_train=False` it is the mapper for inference.

    The attributes `is_train`, `tfm_gens`, `img_format` and `targets` act when they are set, also by a subclass whose
    constructor does not call this one. `augmentations` and `image_format` are other names of the second and third.

    Args:
        is_train: build targets; otherwise annotations are left out of the sample.
        augmentations: applied in order.
        targets: turns ground truth into training targets; None for inference.
        image_format: order of the channels, "RGB" or "BGR".

    Raises:
        ValueError: unknown `image_format`, or training without targets.
    """

    is_train = True
    tfm_gens: Augmentations = ()
    img_format = "RGB"
    with_padding_mask = False  # whether samples have "padding_mask"
    composer: SceneComposer | None = None  # in training, makes new images of those of the dataset
    _targets: Targets | None = None

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Augmentations,
        targets: Targets | None = None,
        image_format: str = "RGB",
    ) -> None:
        check_image_format(image_format)
        self.is_train = is_train
        self.tfm_gens = as_augmentations(augmentations)
        if targets is not None:
            self.targets = targets
        self.img_format = image_format
        if is_train:
            self._require_targets()
        mode = "training" if is_train else "inference"
        augmentations = with_padding(self.tfm_gens, self.padding())
        logger.info("%s: augmentations in %s: %s", type(self).__name__, mode, augmentations)

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

    @property
    def augmentations(self) -> Augmentations:
        """Return `tfm_gens`."""
        return self.tfm_gens

    @augmentations.setter
    def augmentations(self, value: Augmentations) -> None:
        self.tfm_gens = value

    @property
    def image_format(self) -> str:
        """Return `img_format`."""
        return self.img_format

    @image_format.setter
    def image_format(self, value: str) -> None:
        self.img_format = value

    @property
    def targets(self) -> Targets | None:
        """Return what builds the targets: the object that was set, or else that of `make_targets`."""
        return self._targets if self._targets is not None else self.make_targets()

    @targets.setter
    def targets(self, value: Targets | None) -> None:
        self._targets = value

    def make_targets(self) -> Targets | None:
        """Build the targets of the mapper's attributes; called for each sample while `targets` is not set."""
        return None

    def padding(self) -> list[T.Augmentation]:
        """Build what is applied after the augmentations, of the mapper's attributes; called for each sample."""
        return []

    def use_config(self, cfg: CfgNode) -> None:
        """Set what `build_mapper` takes from a config beside the constructor's arguments; here nothing.

        The mappers derived from this class set `num_classes` where it is None, and what else they say.
        """

    def use_records(self, records: Sequence[Record]) -> None:
        """Take the records of the training, from which `composer` copies objects; `TrainingRecords` calls it."""
        if self.composer is not None:
            self.composer.records = records

    def __call__(self, dataset_dict: Record) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: in detectron2's format; not changed.

        Returns:
            The record's entries and "image" uint8 (3, H, W), "height" and "width" of the file, and in training the
            `Targets.entries`: "instances", and "sem_seg" of label maps. Ground truth entries are dropped in training;
            at inference only "annotations" is, because evaluation reads the file names of the others. With
            `with_padding_mask` also "padding_mask" bool (H, W), True on padding.

        Raises:
            BadRecordError: the image or its annotations cannot be used.
        """
        targets = self._require_targets() if self.is_train else None
        dropped = _TARGET_KEYS if self.is_train else ("annotations",)
        pixels = None
        if self.composer is not None and isinstance(targets, InstanceTargets) and "annotations" in dataset_dict:
            dataset_dict, pixels = self.composer(dataset_dict, targets, self.img_format)
        sample = {key: value for key, value in dataset_dict.items() if key not in dropped}
        augmentations = with_padding(self.tfm_gens, self.padding())
        image = read_and_augment(dataset_dict, sample, augmentations, self.img_format, targets, pixels)
        sample["image"] = image.to_tensor()
        if self.with_padding_mask:
            sample["padding_mask"] = image.padding_mask()
        if targets is not None:
            sample.update(targets.entries(dataset_dict, image))
        return sample

    def _require_targets(self) -> Targets:
        targets = self.targets
        if targets is None:
            raise ValueError(
                f"{type(self).__name__} has no targets to train on; pass targets=InstanceTargets() or custom ones"
            )
        return targets


def as_augmentations(augmentations: Augmentations) -> Augmentations:
    """Return an AugmentationList as it is, other sequences as a list, which may be changed."""
    return augmentations if isinstance(augmentations, T.AugmentationList) else list(augmentations)


def with_padding(augmentations: Augmentations, padding: Sequence[T.Augmentation]) -> T.AugmentationList:
    """Return one chain of augmentations and padding; an AugmentationList stays one link of it, and is called."""
    if isinstance(augmentations, T.AugmentationList):
        return T.AugmentationList([augmentations, *padding]) if padding else augmentations
    return T.AugmentationList([*augmentations, *padding])


def read_and_augment(
    record: Record,
    sample: dict[str, Any],
    augmentations: Augmentations,
    image_format: str,
    targets: Targets | None = None,
    pixels: np.ndarray | None = None,
) -> AugmentedImage:
    """Read the image of a record and augment it, together with the label map of the targets.

    Args:
        record: "file_name" is read.
        sample: its "height" and "width" are compared with the size of the file; if missing, they are set.
        augmentations: applied in order.
        image_format: order of the channels, "RGB" or "BGR".
        targets: may read a label map.
        pixels: what `read_image` returns for the file, if it is known.

    Raises:
        BadRecordError: the image or the label map cannot be used, or the sizes differ.
    """
    path = record.get("file_name", "")
    if pixels is None:
        pixels = read_image(path, image_format)
    size = pixels.shape[:2]
    check_image_size(sample, size, path)
    chain = with_padding(augmentations, [])
    label_map = None
    if targets is not None:
        label_map = targets.label_map(record, size, _reads_label_map(chain))
    inputs = DeferredInput(pixels, sem_seg=label_map)
    transforms = inputs.augment(chain)
    return AugmentedImage(inputs.pixels(), size, transforms, inputs.sem_seg)


def check_image_format(image_format: str) -> None:
    """Check INPUT.FORMAT before the first image is read.

    Raises:
        ValueError: neither "RGB" nor "BGR".
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT is {image_format!r}, use one of {', '.join(IMAGE_FORMATS)}")


def _reads_label_map(augmentation: T.Augmentation) -> bool:
    if isinstance(augmentation, T.AugmentationList):
        return any(map(_reads_label_map, augmentation.augs))
    method = augmentation.get_transform
    return "sem_seg" in _parameters(getattr(method, "__func__", method))


@lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> Collection[str]:
    return inspect.signature(function).parameters
