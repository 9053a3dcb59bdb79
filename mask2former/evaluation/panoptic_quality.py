"""Panoptic quality as pure functions (Kirillov et al., "Panoptic Segmentation", CVPR 2019).

Follows the definitions of the COCO panoptic API: a match is an IoU above 0.5, unmatched predictions mostly on void
pixels or crowd regions are not false positives, and categories that appear neither in ground truth nor in predictions
are left out of the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..structures.panoptic_ids import MAX_ID
from .joint_runs import count_pairs, joint_runs

VOID = 0  # segment id of unlabeled pixels


@dataclass(frozen=True)
class ImageMatches:
    """Matches of one image; category ids are those of the dataset.

    The last three count what is inconsistent in the ground truth; they change no score.
    """

    matched: tuple[tuple[int, float], ...] = ()  # (category, IoU), in ascending order of ground truth id
    missed: tuple[int, ...] = ()  # category of each false negative
    spurious: tuple[int, ...] = ()  # category of each false positive
    unlisted: int = field(default=0, compare=False)  # pixels of ids that are not in segments_info
    absent: int = field(default=0, compare=False)  # segments without a pixel
    resized: int = field(default=0, compare=False)  # segments whose "area" is not their number of pixels


@dataclass
class CategoryCounts:
    """Sums over images for one category."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def present(self) -> bool:
        return self.tp + self.fp + self.fn > 0

    @property
    def sq(self) -> float:
        """Return segmentation quality, the mean IoU of the matches."""
        return self.iou / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        """Return recognition quality, an F1 score."""
        return self.tp / (self.tp + 0.5 * self.fp + 0.5 * self.fn) if self.present else 0.0

    @property
    def pq(self) -> float:
        return self.iou / (self.tp + 0.5 * self.fp + 0.5 * self.fn) if self.present else 0.0


@dataclass(frozen=True)
class Quality:
    """Means over the categories that are present, from 0 to 1; NaN when there is none."""

    pq: float
    sq: float
    rq: float
    categories: int = 0


def _index_of_ids(values: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Map ids (M,) to (M,) int64: 0 for an id not in `ids`, 1 for void, 2 + i for `ids[i]`; `ids` are ascending."""
    known = np.array(ids, dtype=np.int64)
    indices = np.searchsorted(known, values)
    is_known = indices < len(known)
    is_known[is_known] = known[indices[is_known]] == values[is_known]
    return np.where(values == VOID, 1, np.where(is_known, indices + 2, 0))


def _check_prediction(id_map: np.ndarray, ids: Sequence[int], overlap: np.ndarray) -> None:
    if len(set(ids)) < len(ids) or any(not VOID < i <= MAX_ID for i in ids):
        raise ValueError(f"segment ids must be unique and in [1, {MAX_ID}] (0 is void), got {list(ids)[:20]}")
    area = overlap.sum(axis=0)
    if area[0]:
        unknown = sorted(set(np.unique(id_map).tolist()) - set(ids) - {VOID})
        raise ValueError(f"segment ids {unknown[:20]} are in the predicted map but not in segments_info")
    empty = [i for i, pixels in zip(ids, area[2:], strict=True) if not pixels]
    if empty:
        raise ValueError(f"segment ids {empty[:20]} are in segments_info but not in the predicted map")


def match_segments(
    truth_map: np.ndarray,
    truth_segments: Sequence[Mapping[str, Any]],
    pred_map: np.ndarray,
    pred_segments: Sequence[Mapping[str, Any]],
) -> ImageMatches:
    """Compare one predicted panoptic segmentation with its ground truth.

    Args:
        truth_map: (h, w) integer segment ids, 0 void.
        truth_segments: dicts `id`, `category_id`, and optionally `iscrowd` (0) and `area`, which is compared only: the
            pixels of the map count.
        pred_map: (h, w) integer segment ids, 0 void.
        pred_segments: dicts `id`, `category_id`; exactly the ids of the map.

    Raises:
        ValueError: the maps differ in size, or map and segments of the prediction are inconsistent.
    """
    if truth_map.shape != pred_map.shape:
        raise ValueError(f"predicted map is (h, w) = {pred_map.shape}, ground truth is {truth_map.shape}")
    truth_ids, predicted_ids, pixels = joint_runs(truth_map, pred_map)
    if predicted_ids.min(initial=0) < 0:
        raise ValueError("the predicted map has negative ids; use 0 for void")
    truth = sorted({s["id"]: s for s in truth_segments}.values(), key=lambda s: s["id"])
    pred = sorted(pred_segments, key=lambda s: s["id"])
    pred_ids = [s["id"] for s in pred]
    # (2 + ground truth, 2 + predictions) pixels: row and column 0 are ids without a segment, 1 is void.
    overlap = count_pairs(
        _index_of_ids(truth_ids, [s["id"] for s in truth]),
        _index_of_ids(predicted_ids, pred_ids),
        pixels,
        (len(truth) + 2, len(pred) + 2),
    )
    _check_prediction(pred_map, pred_ids, overlap)

    common = overlap[2:, 2:]
    pred_void = overlap[1, 2:]
    pred_area = overlap[:, 2:].sum(axis=0)
    truth_pixels = overlap[2:].sum(axis=1)
    listed_area = np.array([s.get("area", n) for s, n in zip(truth, truth_pixels, strict=True)])
    truth_category = np.array([s["category_id"] for s in truth], dtype=np.int64)
    pred_category = np.array([s["category_id"] for s in pred], dtype=np.int64)
    crowd = np.array([bool(s.get("iscrowd", 0)) for s in truth], dtype=bool)

    comparable = (truth_category[:, None] == pred_category) & ~crowd[:, None] & (common > 0)
    union = pred_area + truth_pixels[:, None] - common - pred_void
    iou = np.divide(common, union, out=np.zeros(common.shape), where=comparable)
    rows, columns = np.nonzero(iou > 0.5)  # row-major: by ground truth id, then by predicted id

    ignored = pred_void.copy()
    # Of several crowd regions of a category, the API uses the last.
    last_crowd = {s["category_id"]: s["id"] for s in truth_segments if s.get("iscrowd", 0)}
    row_of = {s["id"]: row for row, s in enumerate(truth)}
    for category, segment_id in last_crowd.items():
        ignored += np.where(pred_category == category, common[row_of[segment_id]], 0)
    is_spurious = np.ones(len(pred), dtype=bool)
    is_spurious[columns] = False
    is_spurious &= ~(ignored / np.maximum(pred_area, 1) > 0.5)
    is_missed = ~crowd
    is_missed[rows] = False
    return ImageMatches(
        matched=tuple(zip(truth_category[rows].tolist(), iou[rows, columns].tolist(), strict=True)),
        missed=tuple(truth_category[is_missed].tolist()),
        spurious=tuple(pred_category[is_spurious].tolist()),
        unlisted=int(overlap[0].sum()),
        absent=int((truth_pixels == 0).sum()),
        resized=int((listed_area != truth_pixels).sum()),
    )


def all_missed(truth_segments: Sequence[Mapping[str, Any]]) -> ImageMatches:
    """Return the matches of an image without a prediction."""
    return ImageMatches(missed=tuple(s["category_id"] for s in truth_segments if not s.get("iscrowd", 0)))


def sum_counts(images: Iterable[ImageMatches]) -> dict[int, CategoryCounts]:
    """Sum the matches of images, in the given order, which determines the last digit of the sums."""
    counts: dict[int, CategoryCounts] = {}
    for image in images:
        for category, iou in image.matched:
            entry = counts.setdefault(category, CategoryCounts())
            entry.tp += 1
            entry.iou += iou
        for category in image.missed:
            counts.setdefault(category, CategoryCounts()).fn += 1
        for category in image.spurious:
            counts.setdefault(category, CategoryCounts()).fp += 1
    return counts


def mean_quality(counts: Mapping[int, CategoryCounts], categories: Iterable[int]) -> Quality:
    """Return the mean over those of `categories` that are present."""
    present = [counts[c] for c in categories if c in counts and counts[c].present]
    n = len(present)
    if n == 0:
        return Quality(float("nan"), float("nan"), float("nan"))
    total = [0.0, 0.0, 0.0]
    for entry in present:  # plain left-to-right sums, as the API does
        total[0] += entry.pq
        total[1] += entry.sq
        total[2] += entry.rq
    return Quality(total[0] / n, total[1] / n, total[2] / n, n)
