"""Video AP as YouTube-VIS defines it (Yang et al., "Video Instance Segmentation", ICCV 2019, section 4).

It is COCO AP with clips instead of images: the IoU of two objects is the sum of their intersections over the sum of
their unions, both over all frames. pycocotools computes the IoU of all pairs in a frame at once; intersections, which
are integers, follow from IoU and areas. Matching and curves are those of images.

Three things differ from COCO: the size of an object is its mean area over the frames in which it is visible, the size
ranges end at 128 x 128 and 256 x 256 pixels, and crowd regions are compared by plain IoU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.cocoeval import Params

from ..data.datasets.ytvis_json import Segmentation, VideoAnnotations
from ..structures.masks import SegmentationError, check_polygons, rle_runs
from .coco_ap import CocoScores
from .coco_matching import Objects, curves, match

MAX_DETS = (1, 10, 100)
_AREAS = np.array([[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]])  # all, small, medium, large


@dataclasses.dataclass(frozen=True)
class VideoScores(CocoScores):
    """CocoScores with recall at each limit of detections per video."""

    def summary(self) -> dict[str, float]:
        """Return the metrics of a YouTube-VIS table, in percent; NaN without ground truth."""
        return {
            "AP": self.ap(),
            "AP50": self.ap(iou=0.5),
            "AP75": self.ap(iou=0.75),
            **{f"AP{size[0]}": self.ap(area=size) for size in ("small", "medium", "large")},
            **{f"AR{limit}": self.ar_at(limit) for limit in (1, 10)},
        }

    def ar_at(self, limit: int) -> float:
        """Return average recall in percent with at most `limit` detections per video and class, one of `max_dets`."""
        number = self.max_dets.index(limit)
        return dataclasses.replace(self, recall=self.recall[..., number : number + 1], max_dets=(limit,)).ar()


@dataclasses.dataclass(frozen=True)
class VideoApSettings:
    """What is compared, and how.

    Attributes:
        iou_thresholds: (T,), rising; COCO's by default.
        recall_points: (R,), rising; COCO's by default.
        areas: (A, 2) smallest and largest mean area in pixels; first all sizes.
        max_dets: limits of detections per video and class, rising.
        video_ids: evaluate only these videos; None: all.
    """

    iou_thresholds: np.ndarray = dataclasses.field(default_factory=lambda: Params("segm").iouThrs)
    recall_points: np.ndarray = dataclasses.field(default_factory=lambda: Params("segm").recThrs)
    areas: np.ndarray = dataclasses.field(default_factory=lambda: _AREAS)
    max_dets: tuple[int, ...] = MAX_DETS
    video_ids: Sequence[int] | None = None


class ClipShape(NamedTuple):
    """Masks of an object in T frames: RLEs `codes` (None where it is not visible) and `areas`, pixels, float64 (T,)."""

    codes: list[Any]
    areas: np.ndarray


def evaluate_videos(
    truth: VideoAnnotations,
    results: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int] | None = None,
    *,
    checked: bool = False,
    settings: VideoApSettings | None = None,
) -> VideoScores:
    """Compare results in the submission format with ground truth.

    Args:
        truth: annotations with ground truth. Objects that are visible in no frame are left out.
        results: {"video_id", "category_id", "score", "segmentations" (T RLEs, None where it is not
            visible)} each. May be empty: AP is then 0 wherever there is ground truth.
        category_ids: evaluate only these categories; all categories of the ground truth if None.
        checked: the RLEs of the results come from `encode_masks` and are not validated again.
        settings: thresholds, sizes, limits and videos; by default those of YouTube-VIS and all videos.

    Raises:
        ValueError: no ground truth, an unknown video, a wrong number of frames, or a malformed RLE.
    """
    if not truth.has_truth:
        raise ValueError(f"{truth.file} has no annotations; submit results.json to the evaluation server")
    s = settings or VideoApSettings()
    selected = sorted(truth.videos if s.video_ids is None else truth.videos.keys() & set(s.video_ids))
    videos = {number: position for position, number in enumerate(selected)}
    categories = {c: n for n, c in enumerate(sorted(truth.categories if category_ids is None else category_ids))}
    truths = Objects.of(_truth_records(truth), _shape_and_area, videos, categories)
    limit = s.max_dets[-1]
    detections = Objects.of(_result_records(truth, results, checked), _shape_and_area, videos, categories, limit)
    matches = match(truths, detections, _plain_iou, s.iou_thresholds, s.areas)
    precision, recall = curves(truths, detections, matches, s.areas, len(categories), s.max_dets, s.recall_points)
    return VideoScores(precision, recall, s.iou_thresholds, tuple(categories), s.max_dets)


def _plain_iou(detections: list[Any], truths: list[Any], crowd: list[int]) -> np.ndarray:
    return clip_iou(detections, truths)


def _shape_and_area(record: Mapping[str, Any]) -> tuple[Any, float]:
    return record["shape"], record["area"]


def _truth_records(truth: VideoAnnotations) -> list[dict[str, Any]]:
    records = []
    for video in truth.videos.values():
        for track in video.tracks:
            shape = clip_shape(track.segmentations, video.size, checked=True)  # validated when the file was read
            if not shape.areas.any():
                continue
            annotated = None if track.areas is None else np.array([a or 0 for a in track.areas], dtype=np.float64)
            area = mean_area(shape.areas if annotated is None else annotated)
            record = {"image_id": video.id, "category_id": track.category_id, "iscrowd": track.crowd}
            records.append({**record, "shape": shape, "area": area})
    return records


def _result_records(
    truth: VideoAnnotations, results: Sequence[Mapping[str, Any]], checked: bool
) -> list[dict[str, Any]]:
    records = []
    for position, result in enumerate(results):
        video = truth.videos.get(result["video_id"])
        if video is None:
            raise ValueError(f"prediction for video {result['video_id']!r}, which {truth.file} does not list")
        where = f"result {position}, video {video.id} ({video.file_names[0]})"
        count = len(result["segmentations"])
        if count != len(video.file_names):
            raise ValueError(f"{where}: {count} segmentations, but {truth.file} lists {len(video.file_names)} frames")
        try:
            shape = clip_shape(result["segmentations"], video.size, checked)
        except SegmentationError as error:
            raise ValueError(f"{where}: {error}") from error
        record = {"image_id": video.id, "category_id": result["category_id"], "score": result["score"]}
        records.append({**record, "shape": shape, "area": mean_area(shape.areas)})
    return records


def clip_shape(segmentations: Sequence[Segmentation | None], size: tuple[int, int], checked: bool = False) -> ClipShape:
    """Convert the segmentations of an object to RLEs and areas.

    Args:
        segmentations: T polygons or RLEs; None or empty where the object is not visible.
        size: height and width of a frame.
        checked: the RLEs are known to be valid and are not checked for runs that pycocotools cannot handle.

    Raises:
        SegmentationError: a segmentation is malformed or has another size.
    """
    codes: list[Any] = []
    for segmentation in segmentations:
        if not checked and isinstance(segmentation, dict) and segmentation:
            rle_runs(segmentation, size)
        elif not checked and segmentation is not None and not isinstance(segmentation, (dict, list)):
            raise SegmentationError(f"a segmentation is a {type(segmentation).__name__}, not polygons, an RLE or None")
        codes.append(_rle(segmentation, size) if segmentation else None)
    # One by one: with NumPy 2, pycocotools fails to compute the areas of more than 255 masks at once.
    areas = [int(mask_util.area(code)) if code else 0 for code in codes]
    return ClipShape(codes, np.array(areas, dtype=np.float64))


def _rle(segmentation: Segmentation, size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        polygons = [polygon.reshape(-1) for polygon in check_polygons(segmentation, size)]
        return mask_util.merge(mask_util.frPyObjects(polygons, *size))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *size)
    if list(segmentation["size"]) != list(size):
        raise SegmentationError(f"the RLE has size {segmentation['size']}, the video has {list(size)}")
    return segmentation


def clip_iou(detections: Sequence[ClipShape], truths: Sequence[ClipShape]) -> np.ndarray:
    """Compute IoU (D, G) of clips of the same T frames; one of each pair must be visible in some frame."""
    predicted = np.stack([shape.areas for shape in detections])
    true = np.stack([shape.areas for shape in truths])
    shared = np.zeros((len(predicted), len(true)))
    for frame in range(predicted.shape[1]):
        rows, columns = np.flatnonzero(predicted[:, frame]), np.flatnonzero(true[:, frame])
        if not len(rows) or not len(columns):
            continue
        first = [detections[row].codes[frame] for row in rows.tolist()]
        second = [truths[column].codes[frame] for column in columns.tolist()]
        ious = np.asarray(mask_util.iou(first, second, [0] * len(second)))
        both = predicted[rows, frame][:, None] + true[columns, frame]
        shared[np.ix_(rows, columns)] += np.rint(ious * both / (1 + ious))  # i = iou (a + b - i)
    return shared / (predicted.sum(axis=1)[:, None] + true.sum(axis=1) - shared)


def mean_area(areas: np.ndarray) -> float:
    """Return the mean of areas (T,) over the frames that show the object, 0 without any."""
    visible = areas[areas > 0]
    return float(visible.mean()) if visible.size else 0.0
