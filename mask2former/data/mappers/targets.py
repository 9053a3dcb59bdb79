"""The two kinds of ground truth: annotations of single objects, and panoptic PNG files."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from ..errors import BadRecordError
from ..geometry import move_patches, move_polygons
from ..images import read_panoptic_png
from ..masks import EMPTY_PATCH, Patch, SegmentationError, check_polygons, source_patch
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


class PanopticTargets(SegmentationMapper):
    """Targets from "pan_seg_file_name" and "segments_info": one mask for each segment, things and stuff.

    Crowd segments are left out. Segments that were cropped away stay as empty masks unless `drop_empty`,
    because the published models were trained so.
    """

    def targets(self, record: dict[str, Any], frame: Frame) -> tuple[list[int], list[Patch]]:
        """See SegmentationMapper.targets."""
        file = record.get("pan_seg_file_name")
        segments = record.get("segments_info")
        if file is None or not isinstance(segments, list):
            reason = (
                "the record has no 'pan_seg_file_name' or no 'segments_info'; this mapper needs panoptic data"
            )
            raise BadRecordError(str(record["file_name"]), reason)
        ids = read_panoptic_png(file)
        if ids.shape != frame.size:
            raise BadRecordError(
                file,
                f"is {list(ids.shape)} (height, width), its picture {record['file_name']} {list(frame.size)}",
            )
        classes, wanted = [], []
        for segment in segments:
            if not isinstance(segment, dict):
                raise BadRecordError(file, "an entry of segments_info is a dictionary")
            where = f"segment {segment.get('id')}"
            if segment.get("iscrowd", 0):
                continue
            if not isinstance(segment.get("id"), int) or segment["id"] < 1:
                raise BadRecordError(file, "the id of a segment is an integer above 0", where)
            classes.append(self.check_class(segment.get("category_id"), file, where))
            wanted.append(segment["id"])
        patches = _patches_of_ids(ids, wanted)
        return classes, move_patches(patches, frame.transforms, frame.size)


def _patches_of_ids(ids: np.ndarray, wanted: list[int]) -> list[Patch]:
    """Cut every wanted id out of an id map int (H, W); absent ids give empty patches."""
    flat = ids.reshape(-1)
    # Sort the ids of runs of equal pixels, which are few, instead of those of all pixels.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    present, labels = np.unique(flat[starts], return_inverse=True)
    labels = np.repeat(labels.reshape(-1), np.diff(starts, append=flat.size)).reshape(ids.shape)
    slices = ndimage.find_objects(labels + 1)
    position = {int(segment): index for index, segment in enumerate(present)}
    patches = []
    for segment in wanted:
        index = position.get(segment)
        if index is None:
            patches.append(EMPTY_PATCH)
            continue
        rows, columns = slices[index]
        patches.append(Patch(rows.start, columns.start, labels[rows, columns] == index))
    return patches
