"""Training targets, which `SegmentationMapper` builds from the ground truth of a record.

`Targets` is the interface; implement it for ground truth of another type. There are three implementations: for instance
annotations, label maps, and panoptic PNG files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from ...errors import BadRecordError
from ...structures.masks import (
    EMPTY_PATCH,
    Patch,
    SegmentationError,
    boxes_from_patches,
    check_polygons,
    paste,
    source_patch,
)
from ..image_io import read_label_map, read_panoptic_png
from ..mask_transforms import IndexMap, index_map, move_patches, move_polygons, padding_mask, patches_by_id

Record = dict[str, Any]


@dataclass(frozen=True)
class AugmentedImage:
    """An image after its augmentations, and the transforms that apply to its masks.

    Attributes:
        pixels: uint8 (H, W, 3).
        file_size: height and width of the image file.
        transforms: applied to the image; `transforms.apply_segmentation(mask)` applies them to a mask of `file_size`.
        label_map: floating point (H, W), `Targets.label_map` after the augmentations; None if there is none.
    """

    pixels: np.ndarray
    file_size: tuple[int, int]
    transforms: T.TransformList
    label_map: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return height H and width W."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @cached_property
    def lookup(self) -> IndexMap | None:
        """Return the `index_map` of the transforms."""
        return index_map(self.transforms, self.file_size)

    def padding_mask(self) -> torch.Tensor:
        """Return bool (H, W), True on padding: the pixels that no pixel of the file gave."""
        return padding_mask(self.transforms, self.file_size, self.lookup)

    def to_tensor(self) -> torch.Tensor:
        """Return the pixels as the model takes them, uint8 (3, H, W), contiguous."""
        planes = self.pixels.transpose(2, 0, 1)
        return torch.from_numpy(planes if planes.flags.c_contiguous and planes.flags.writeable else planes.copy())


class Targets(Protocol):
    """Builds the targets of a training sample: `label_map` before the augmentations, `entries` after them.

    Implementations are called in the workers of the loader: they hold settings, not open files.
    """

    def label_map(self, record: Record, size: tuple[int, int], for_augmentations: bool) -> np.ndarray | None:
        """Read the label map that is augmented together with the image.

        Args:
            record: in detectron2's format; not to be changed.
            size: height and width of the image file.
            for_augmentations: an augmentation reads the label map (its `get_transform` takes "sem_seg").

        Returns:
            Floating point (height, width), because detectron2 resizes floats as in the training of the published
            models; or None (the default) if neither `entries` nor an augmentation needs one.

        Raises:
            BadRecordError: the labels cannot be used.
        """
        return None

    @abstractmethod
    def entries(self, record: Record, image: AugmentedImage) -> dict[str, Any]:
        """Return the entries that the targets add to the sample.

        Args:
            record: as for `label_map`.
            image: the augmented image, H x W pixels.

        Returns:
            "instances": Instances with gt_classes int64 (N,), gt_masks bool (N, H, W) and optionally gt_boxes; for
            models that classify pixels also "sem_seg": int64 (H, W).

        Raises:
            BadRecordError: the ground truth cannot be used.
        """


class InstanceTargets(Targets):
    """Targets from "annotations": any mixture of polygons, RLE and bitmaps; crowd regions are left out.

    Args:
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.
        drop_empty: leave out objects that the augmentations removed from the image.
        required: a record without "annotations" is an error; otherwise it has no targets.
    """

    def __init__(self, num_classes: int | None = None, drop_empty: bool = True, *, required: bool = True) -> None:
        self.num_classes = num_classes
        self.drop_empty = drop_empty
        self.required = required

    def entries(self, record: Record, image: AugmentedImage) -> dict[str, Any]:
        """Return "instances" with gt_classes, gt_masks and gt_boxes; see `Targets.entries`."""
        if not self.required and "annotations" not in record:
            return {}
        classes, patches = self.objects(record, image)
        return {"instances": make_instances(classes, patches, image.size, self.drop_empty)}

    def objects(self, record: Record, image: AugmentedImage) -> tuple[list[int], list[Patch]]:
        """Return classes (N) and masks (N) of the annotations that are not crowd, in their order.

        The masks are those of the augmented image, empty where the augmentations removed an object.

        Raises:
            BadRecordError: an annotation cannot be used; the error names it.
        """
        file = str(record["file_name"])
        classes: list[int] = []
        polygons: dict[int, list[np.ndarray]] = {}
        patches: dict[int, Patch] = {}
        for position, annotation in enumerate(_annotations(record)):
            if not isinstance(annotation, dict):
                raise BadRecordError(file, "is not a dictionary", f"annotation number {position}")
            where = f"annotation {annotation.get('id', f'number {position} of the image')}"
            if annotation.get("iscrowd", 0):
                continue
            index = len(classes)
            classes.append(check_class(annotation.get("category_id"), self.num_classes, file, where))
            segmentation = annotation.get("segmentation")
            try:
                if isinstance(segmentation, (list, tuple)):
                    polygons[index] = check_polygons(segmentation, image.file_size)
                else:
                    patches[index] = source_patch(segmentation, image.file_size)
            except SegmentationError as error:
                raise BadRecordError(file, str(error), where) from error
        drawn = move_polygons(list(polygons.values()), image.transforms, image.file_size, image.size, image.lookup)
        moved = move_patches(list(patches.values()), image.transforms, image.file_size, image.lookup)
        masks = dict(zip([*polygons, *patches], [*drawn, *moved], strict=True))
        return classes, [masks[index] for index in range(len(classes))]


class SemanticTargets(Targets):
    """Targets from "sem_seg_file_name": one mask for each present class, in the order of the classes.

    Args:
        num_classes: labels outside [0, num_classes) are errors; None for no upper bound.
        ignore_label: value of pixels without a class in the label map.
        ignore_value: their value in the sample's "sem_seg".
    """

    def __init__(self, num_classes: int | None = None, ignore_label: int = 255, ignore_value: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.ignore_value = ignore_value

    def label_map(self, record: Record, size: tuple[int, int], for_augmentations: bool) -> np.ndarray | None:
        """Read the label map of the record; see `read_labels`."""
        return read_labels(record, size, self.num_classes, self.ignore_label)

    def entries(self, record: Record, image: AugmentedImage) -> dict[str, Any]:
        """Return "instances" and "sem_seg" int64 (H, W); see `Targets.entries`."""
        assert image.label_map is not None
        labels = image.label_map.astype(np.int64)
        patches = patches_by_id(labels)
        patches.pop(self.ignore_label, None)
        file = str(record["sem_seg_file_name"])
        classes = [check_class(label, self.num_classes, file, f"label {label}") for label in patches]
        sem_seg = torch.from_numpy(labels)
        if self.ignore_value != self.ignore_label:
            sem_seg[sem_seg == self.ignore_label] = self.ignore_value
        return {"instances": make_instances(classes, list(patches.values()), image.size), "sem_seg": sem_seg}


class Segment(NamedTuple):
    """An entry of segments_info."""

    id: int
    label: int  # contiguous class
    crowd: bool


class PanopticTargets(Targets):
    """Targets from "pan_seg_file_name" and "segments_info": one mask for each segment, things and stuff.

    Crowd segments are left out. "sem_seg_file_name" is read only if an augmentation needs the label map; for a record
    without it, the label map is made of the segments.

    Args:
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.
        ignore_label: value of pixels without a class in the label map.
        drop_empty: leave out segments that the augmentations removed from the image. The published models were trained
            with them, as empty masks.
        required: a record without "pan_seg_file_name" is an error; otherwise it has no targets.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        ignore_label: int = 255,
        drop_empty: bool = False,
        *,
        required: bool = True,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.drop_empty = drop_empty
        self.required = required

    def label_map(self, record: Record, size: tuple[int, int], for_augmentations: bool) -> np.ndarray | None:
        """Read the label map of the record or make it of the segments, if an augmentation needs it."""
        if not for_augmentations:
            return None
        if "sem_seg_file_name" in record:
            return read_labels(record, size, self.num_classes, self.ignore_label)
        ids, segments = self._read_segments(record, size)
        labels = np.full(ids.shape, self.ignore_label, np.float64)
        for segment in segments:
            labels[ids == segment.id] = segment.label
        return labels

    def entries(self, record: Record, image: AugmentedImage) -> dict[str, Any]:
        """Return "instances" with gt_classes, gt_masks and gt_boxes, and the record's "segments_info".

        The latter lists crowd segments too, and is that of the file: ids and areas do not follow the augmentations.
        See `Targets.entries`.
        """
        if not self.required and "pan_seg_file_name" not in record:
            return {}
        ids, segments = self._read_segments(record, image.file_size)
        segments = [segment for segment in segments if not segment.crowd]
        found = patches_by_id(ids, {segment.id for segment in segments})
        patches = [found.get(segment.id, EMPTY_PATCH) for segment in segments]
        moved = move_patches(patches, image.transforms, image.file_size, image.lookup)
        classes = [segment.label for segment in segments]
        instances = make_instances(classes, moved, image.size, self.drop_empty)
        return {"instances": instances, "segments_info": [dict(entry) for entry in record["segments_info"]]}

    def _read_segments(self, record: Record, size: tuple[int, int]) -> tuple[np.ndarray, list[Segment]]:
        """Return segment ids int32 (H, W), and the segments, crowd included."""
        file = record.get("pan_seg_file_name")
        entries = record.get("segments_info")
        if file is None or not isinstance(entries, list):
            missing = "'pan_seg_file_name'" if file is None else "'segments_info'"
            reason = f"training sample has no {missing}; this mapper needs panoptic annotations"
            raise BadRecordError(str(record["file_name"]), reason)
        ids = read_panoptic_png(file)
        _check_same_size(file, ids, record, size)
        segments = []
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise BadRecordError(file, "is not a dictionary", f"entry {position} of segments_info")
            where = f"segment {entry.get('id')}"
            if not isinstance(entry.get("id"), int) or entry["id"] < 1:
                raise BadRecordError(file, "segment id is not an integer above 0", where)
            label = check_class(entry.get("category_id"), self.num_classes, file, where)
            segments.append(Segment(entry["id"], label, bool(entry.get("iscrowd", 0))))
        return ids, segments


def make_instances(
    classes: Sequence[int], patches: Sequence[Patch], size: tuple[int, int], drop_empty: bool = False
) -> Instances:
    """Build the "instances" of a sample.

    Args:
        classes: class indices of N objects.
        patches: their masks, inside an image of `size`.
        size: height H and width W.
        drop_empty: leave out objects with an empty mask.

    Returns:
        gt_classes int64 (N,), gt_masks bool (N, H, W), and gt_boxes of the masks, in pixels; zeros for an empty mask.
    """
    if drop_empty:
        kept = [index for index, patch in enumerate(patches) if patch.bits.size]
        classes, patches = [classes[index] for index in kept], [patches[index] for index in kept]
    instances = Instances(size)
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = torch.from_numpy(paste(patches, size))
    instances.gt_boxes = Boxes(boxes_from_patches(patches))
    return instances


def check_class(value: Any, num_classes: int | None, file: str, where: str) -> int:
    """Check and return the class index of an annotation.

    Args:
        value: value of "category_id".
        num_classes: K; None for no upper bound.
        file: for the message.
        where: for the message, for example "annotation 17".

    Raises:
        BadRecordError: not an integer in [0, K).
    """
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if is_integer and value >= 0 and (num_classes is None or value < num_classes):
        return int(value)
    reason = f"category_id {value!r} is not a class index"
    if num_classes is not None:
        reason += f" in [0, {num_classes}); MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}"
    raise BadRecordError(file, reason, where)


def read_labels(record: Record, size: tuple[int, int], num_classes: int | None, ignore_label: int) -> np.ndarray:
    """Read "sem_seg_file_name", an image whose pixels are class indices.

    Args:
        record: in detectron2's format.
        size: height H and width W of the image.
        num_classes: K; None for no bounds.
        ignore_label: value of pixels without a class.

    Returns:
        Floating point (H, W), each an index in [0, K) or `ignore_label`.

    Raises:
        BadRecordError: no such file, a size other than the image's, or other labels.
    """
    path = record.get("sem_seg_file_name")
    if path is None:
        reason = "training sample has no 'sem_seg_file_name'; this mapper needs label maps"
        raise BadRecordError(str(record["file_name"]), reason)
    labels = read_label_map(path)
    _check_same_size(path, labels, record, size)
    if num_classes is not None:
        invalid = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_label)
        if invalid.any():
            raise BadRecordError(
                path,
                f"the label of {int(invalid.sum())} pixels, for example {int(labels[invalid][0])}, is not a class "
                f"index in [0, {num_classes}); MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, and the ignore label "
                f"is {ignore_label}",
            )
    # float32 holds integers of up to 24 bits.
    return labels.astype(np.float32 if labels.max(initial=0) < 2**24 else np.float64)


def dataset_ignore_label(cfg: CfgNode) -> int:
    """Return the value of pixels without a class in the label maps of DATASETS.TRAIN.

    It is `ignore_label` in the metadata of the datasets, or else MODEL.SEM_SEG_HEAD.IGNORE_VALUE.

    Raises:
        ValueError: the datasets differ.
    """
    labels = {
        name: MetadataCatalog.get(name).ignore_label
        for name in cfg.DATASETS.TRAIN
        if name in DatasetCatalog and MetadataCatalog.get(name).get("ignore_label") is not None
    }
    if len(set(labels.values())) > 1:
        each = ", ".join(f"{name}: {label}" for name, label in labels.items())
        raise ValueError(
            f"DATASETS.TRAIN: the datasets have different ignore labels ({each}); train on datasets "
            "with the same ignore_label in their metadata"
        )
    return next(iter(labels.values()), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)


def _annotations(record: Record) -> list[Any]:
    annotations = record.get("annotations")
    if not isinstance(annotations, list):
        reason = "training sample has no 'annotations'; this mapper needs instance annotations"
        raise BadRecordError(str(record["file_name"]), reason)
    return annotations


def _check_same_size(file: str, pixels: np.ndarray, record: Record, size: tuple[int, int]) -> None:
    if pixels.shape != size:
        raise BadRecordError(
            file,
            f"is {list(pixels.shape)} (height, width), its image {record['file_name']} {list(size)}",
        )
