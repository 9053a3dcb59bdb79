"""The three kinds of ground truth: annotations of single objects, label pictures, and panoptic PNG files."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from scipy import ndimage

from ...errors import BadRecordError
from ...structures.masks import EMPTY_PATCH, Patch, SegmentationError, check_polygons, source_patch
from ..image_io import read_label_map, read_panoptic_png
from ..mask_transforms import move_patches, move_polygons
from .base import Frame, SegmentationMapper


class InstanceTargets(SegmentationMapper):
    """Targets from "annotations": polygons, RLE and bitmaps in any mixture; crowd regions are left out."""

    def targets(self, record: dict[str, Any], frame: Frame) -> tuple[list[int], list[Patch]]:
        """See SegmentationMapper.targets."""
        file = str(record["file_name"])
        annotations = record.get("annotations")
        if not isinstance(annotations, list):
            raise BadRecordError(
                file, "the record has no 'annotations'; this mapper trains on instance annotations"
            )
        classes: list[int] = []
        polygons: dict[int, list[np.ndarray]] = {}
        patches: dict[int, Patch] = {}
        for position, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                raise BadRecordError(file, "an annotation is a dictionary", f"annotation number {position}")
            where = f"annotation {annotation.get('id', f'number {position} of the picture')}"
            if annotation.get("iscrowd", 0):
                continue
            index = len(classes)
            classes.append(self.check_class(annotation.get("category_id"), file, where))
            segmentation = annotation.get("segmentation")
            try:
                if isinstance(segmentation, (list, tuple)):
                    polygons[index] = check_polygons(segmentation, frame.size)
                else:
                    patches[index] = source_patch(segmentation, frame.size)
            except SegmentationError as error:
                raise BadRecordError(file, str(error), where) from error
        drawn = move_polygons(list(polygons.values()), frame.transforms, frame.size, frame.new_size)
        carried = move_patches(list(patches.values()), frame.transforms, frame.size)
        moved = dict(zip([*polygons, *patches], [*drawn, *carried], strict=True))
        return classes, [moved[index] for index in range(len(classes))]


class LabelPictures(SegmentationMapper):
    """Reads "sem_seg_file_name", a picture whose pixels are class indices."""

    def read_labels(self, record: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        """Labels floating point (H, W), each a class of the model or `ignore_label`.

        Raises:
            BadRecordError: no such file, another size than the picture, or a label that is no class.
        """
        path = record.get("sem_seg_file_name")
        if path is None:
            reason = "the record has no 'sem_seg_file_name'; this mapper trains on label pictures"
            raise BadRecordError(str(record["file_name"]), reason)
        labels = read_label_map(path)
        _check_same_size(path, labels, record, size)
        if self.num_classes is not None:
            wrong = ((labels < 0) | (labels >= self.num_classes)) & (labels != self.ignore_label)
            if wrong.any():
                raise BadRecordError(
                    path,
                    f"{int(wrong.sum())} pixels have labels that are no class, for example "
                    f"{int(labels[wrong][0])}; MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.num_classes}, and pixels "
                    f"to ignore have {self.ignore_label}",
                )
        # Floats of 32 bits hold labels of up to 24 bits.
        return labels.astype(np.float32 if labels.max(initial=0) < 2**24 else np.float64)


class SemanticTargets(LabelPictures):
    """Targets from "sem_seg_file_name": one mask for each class that is present, in the order of the classes.

    Samples have "sem_seg" int64 (H, W) too, for models that classify pixels.
    """

    def label_map(self, record: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
        """See SegmentationMapper.label_map."""
        return self.read_labels(record, size)

    def targets(self, record: dict[str, Any], frame: Frame) -> tuple[list[int], list[Patch]]:
        """See SegmentationMapper.targets."""
        assert frame.labels is not None
        patches = _patches_by_id(frame.labels.astype(np.int64))
        patches.pop(self.ignore_label, None)
        file = str(record["sem_seg_file_name"])
        return [self.check_class(label, file, f"label {label}") for label in patches], list(patches.values())

    def more_targets(self, frame: Frame) -> dict[str, Any]:
        """The label map of the sample; pixels without a class have `ignore_value`."""
        assert frame.labels is not None
        labels = torch.from_numpy(frame.labels.astype(np.int64))
        if self.ignore_value != self.ignore_label:
            labels[labels == self.ignore_label] = self.ignore_value
        return {"sem_seg": labels}


class Segment(NamedTuple):
    """An entry of segments_info."""

    id: int
    label: int  # contiguous class
    crowd: bool


class PanopticTargets(LabelPictures):
    """Targets from "pan_seg_file_name" and "segments_info": one mask for each segment, things and stuff.

    Crowd segments are left out. Segments that were cropped away stay as empty masks unless `drop_empty`,
    because the published models were trained so. "sem_seg_file_name" is read only where an augmentation looks
    at the classes; in a record without it the classes of the segments serve instead.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Keywords of the constructor from a config."""
        return {**super().from_config(cfg, is_train), "drop_empty": False}

    def label_map(self, record: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
        """See SegmentationMapper.label_map."""
        if not any(_looks_at_labels(augmentation) for augmentation in self.augmentations.augs):
            return None
        if "sem_seg_file_name" in record:
            return self.read_labels(record, size)
        ids, segments = self._read_segments(record, size)
        labels = np.full(ids.shape, self.ignore_label, np.float64)
        for segment in segments:
            labels[ids == segment.id] = segment.label
        return labels

    def targets(self, record: dict[str, Any], frame: Frame) -> tuple[list[int], list[Patch]]:
        """See SegmentationMapper.targets."""
        ids, segments = self._read_segments(record, frame.size)
        segments = [segment for segment in segments if not segment.crowd]
        found = _patches_by_id(ids, {segment.id for segment in segments})
        patches = [found.get(segment.id, EMPTY_PATCH) for segment in segments]
        return [segment.label for segment in segments], move_patches(patches, frame.transforms, frame.size)

    def more_targets(self, frame: Frame) -> dict[str, Any]:
        """None: labels that were read served the crop alone."""
        return {}

    def _read_segments(self, record: dict[str, Any], size: tuple[int, int]) -> tuple[np.ndarray, list[Segment]]:
        """Segment ids int32 (H, W), and the segments, crowd included."""
        file = record.get("pan_seg_file_name")
        entries = record.get("segments_info")
        if file is None or not isinstance(entries, list):
            reason = (
                "the record has no 'pan_seg_file_name' or no 'segments_info'; this mapper needs panoptic data"
            )
            raise BadRecordError(str(record["file_name"]), reason)
        ids = read_panoptic_png(file)
        _check_same_size(file, ids, record, size)
        segments = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise BadRecordError(file, "an entry of segments_info is a dictionary")
            where = f"segment {entry.get('id')}"
            if not isinstance(entry.get("id"), int) or entry["id"] < 1:
                raise BadRecordError(file, "the id of a segment is an integer above 0", where)
            label = self.check_class(entry.get("category_id"), file, where)
            segments.append(Segment(entry["id"], label, bool(entry.get("iscrowd", 0))))
        return ids, segments


def _looks_at_labels(augmentation: T.Augmentation) -> bool:
    return "sem_seg" in inspect.signature(augmentation.get_transform).parameters


def _check_same_size(file: str, pixels: np.ndarray, record: dict[str, Any], size: tuple[int, int]) -> None:
    if pixels.shape != size:
        raise BadRecordError(
            file,
            f"is {list(pixels.shape)} (height, width), its picture {record['file_name']} {list(size)}",
        )


def _patches_by_id(ids: np.ndarray, wanted: Collection[int] | None = None) -> dict[int, Patch]:
    """Cut the ids, or those that are wanted, out of an id map int (H, W); in rising order, absent ones left out."""
    flat = ids.reshape(-1)
    # Sort the ids of runs of equal pixels, which are few, instead of those of all pixels.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    present, labels = np.unique(flat[starts], return_inverse=True)
    labels = np.repeat(labels.reshape(-1), np.diff(starts, append=flat.size)).reshape(ids.shape)
    slices = ndimage.find_objects(labels + 1)
    patches = {}
    for index, (label, (rows, columns)) in enumerate(zip(present.tolist(), slices, strict=True)):
        if wanted is None or label in wanted:
            patches[label] = Patch(rows.start, columns.start, labels[rows, columns] == index)
    return patches
