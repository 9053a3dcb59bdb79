"""Matching of detections and ground truth as COCO does it, for all images, classes, sizes and thresholds at once.

COCO's rule is greedy: in descending order of score, each detection takes the unmatched ground truth of highest IoU
above the threshold. The COCO API visits every (threshold, size, detection, ground truth) in Python. Here only pairs
above the lowest threshold are visited. Where every detection has at most one candidate, which is the usual case, the
size range cannot change a match, and matching is vectorized. The results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Overlap = Callable[[list[Any], list[Any], list[int]], np.ndarray]  # detections, truths, crowd -> IoU (D, G)


@dataclass(frozen=True)
class Objects:
    """Ground truth or detections, sorted by class, then image, then descending score (detections) or input order.

    Attributes:
        category, image: (N,) int64, positions in the lists of evaluated classes and images.
        rank: (N,) int64, position among those of the same class and image.
        area: (N,) float64, pixels.
        score: (N,) float64; 0 for ground truth.
        crowd: (N,) bool; False for detections.
        shapes: N masks or boxes, whatever the overlap function takes.
    """

    category: np.ndarray
    image: np.ndarray
    rank: np.ndarray
    area: np.ndarray
    score: np.ndarray
    crowd: np.ndarray
    shapes: list[Any]

    @classmethod
    def of(
        cls,
        records: Sequence[Mapping[str, Any]],
        describe: Callable[[Mapping[str, Any]], tuple[Any, float]],
        images: Mapping[Any, int],
        categories: Mapping[int, int],
        limit: int | None = None,
    ) -> Objects:
        """Build from COCO records; other images and classes, and records beyond `limit` per pair, are left out.

        `describe` returns the shape and area of a record.
        """
        used = [i for i, r in enumerate(records) if r["image_id"] in images and r["category_id"] in categories]
        category = np.array([categories[records[i]["category_id"]] for i in used], dtype=np.int64)
        image = np.array([images[records[i]["image_id"]] for i in used], dtype=np.int64)
        score = np.array([records[i].get("score", 0) for i in used], dtype=np.float64)
        crowd = np.array([bool(records[i].get("iscrowd", 0)) for i in used], dtype=bool)
        order = np.lexsort((-score, image, category))  # stable: equal scores keep their input order
        category, image = category[order], image[order]
        rank = np.arange(len(order)) - _starts(category * max(1, len(images)) + image)
        kept = np.ones(len(order), dtype=bool) if limit is None else rank < limit
        described = [describe(records[used[i]]) for i in order[kept]]
        return cls(
            category=category[kept],
            image=image[kept],
            rank=rank[kept],
            area=np.array([area for _, area in described], dtype=np.float64),
            score=score[order][kept],
            crowd=crowd[order][kept],
            shapes=[shape for shape, _ in described],
        )

    def outside(self, ranges: np.ndarray) -> np.ndarray:
        """Return (A, N) bool: the area is outside the range; ranges (A, 2) of areas in pixels, both ends inclusive."""
        return (self.area < ranges[:, :1]) | (self.area > ranges[:, 1:])


def _starts(keys: np.ndarray) -> np.ndarray:
    """Return, for each element of sorted keys (N,), the position of the first element equal to it."""
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))


@dataclass(frozen=True)
class Matches:
    """Matches from which the precision-recall curves are computed.

    Attributes:
        right: (A, T, D) bool, matched to a ground truth that is evaluated.
        ignored: (A, T, D) bool, matched to a crowd or a ground truth of another size, or unmatched and of another size.
    """

    right: np.ndarray
    ignored: np.ndarray


def match(
    truths: Objects, detections: Objects, overlap: Overlap, thresholds: np.ndarray, ranges: np.ndarray
) -> Matches:
    """Match detections to ground truth.

    Args:
        truths, detections: of the same images and classes.
        overlap: returns IoU of the detections and ground truth of one image and class.
        thresholds: (T,) minimum IoU of a match, ascending.
        ranges: (A, 2) areas, in pixels, of ground truth that is evaluated.
    """
    thresholds = np.minimum(thresholds, 1 - 1e-10)
    ignored_truths = truths.crowd | truths.outside(ranges)
    shape = (len(ranges), len(thresholds), len(detections.area))
    matched, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    easy: list[np.ndarray] = []  # columns: detection, ground truth, IoU
    for detection_range, truth_range in _common_pairs(truths, detections):
        crowd = truths.crowd[truth_range]
        ious = overlap(detections.shapes[detection_range], truths.shapes[truth_range], crowd.astype(np.uint8).tolist())
        rows, columns = np.nonzero(ious >= thresholds[0])
        if not len(rows):
            continue
        if (rows[1:] != rows[:-1]).all():
            easy.append(np.stack([rows + detection_range.start, columns + truth_range.start, ious[rows, columns]]))
            continue
        for a in range(len(ranges)):
            matched[a, :, detection_range], ignored[a, :, detection_range] = _greedy(
                ious, crowd, ignored_truths[a, truth_range], thresholds
            )
    if easy:
        _match_without_choice(np.concatenate(easy, axis=1), truths, ignored_truths, thresholds, matched, ignored)
    ignored |= ~matched & detections.outside(ranges)[:, None]
    return Matches(right=matched & ~ignored, ignored=ignored)


def _common_pairs(truths: Objects, detections: Objects) -> list[tuple[slice, slice]]:
    """Return (detections, ground truth) slices of each image and class that has both."""
    width = 1 + max(truths.image.max(initial=0), detections.image.max(initial=0))
    keys = detections.category * width + detections.image
    pairs, begin = np.unique(truths.category * width + truths.image, return_index=True)
    end = np.append(begin, len(truths.area))[1:]
    first, last = np.searchsorted(keys, pairs), np.searchsorted(keys, pairs, side="right")
    bounds = zip(first.tolist(), last.tolist(), begin.tolist(), end.tolist(), strict=True)
    return [(slice(a, b), slice(c, d)) for a, b, c, d in bounds if a < b]


def _match_without_choice(
    candidates: np.ndarray,
    truths: Objects,
    ignored_truths: np.ndarray,
    thresholds: np.ndarray,
    matched: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """Match detections that have one candidate, (3, M): a ground truth takes the best of them, a crowd takes all."""
    detection_ids, truth_ids, ious = candidates[0].astype(np.int64), candidates[1].astype(np.int64), candidates[2]
    order = np.lexsort((detection_ids, truth_ids))
    detection_ids, truth_ids, ious = detection_ids[order], truth_ids[order], ious[order]
    crowd = truths.crowd[truth_ids]
    for t, threshold in enumerate(thresholds):
        good = np.flatnonzero(ious >= threshold)
        first = np.ones(len(good), dtype=bool)
        first[1:] = truth_ids[good[1:]] != truth_ids[good[:-1]]
        taken = good[first | crowd[good]]
        matched[:, t, detection_ids[taken]] = True
        ignored[:, t, detection_ids[taken]] = ignored_truths[:, truth_ids[taken]]


def _greedy(
    ious: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Apply COCO's rule to the IoUs (D, G) of one image and class.

    Returns (T, D) matched, and (T, D) matched to an ignored ground truth.
    """
    order = np.argsort(ignored, kind="stable")  # evaluated ground truth comes first
    ious, crowds, skip = ious[:, order], crowd[order].tolist(), ignored[order].tolist()
    matched = np.zeros((len(thresholds), len(ious)), dtype=bool)
    matched_ignored = np.zeros_like(matched)
    candidates: dict[int, list[tuple[int, float]]] = {}
    for row, column in zip(*np.nonzero(ious >= thresholds[0]), strict=True):
        candidates.setdefault(int(row), []).append((int(column), float(ious[row, column])))
    for t, threshold in enumerate(thresholds.tolist()):
        taken = [False] * len(skip)
        for row, pairs in candidates.items():
            column = _best_truth(pairs, threshold, taken, crowds, skip)
            if column is not None:
                taken[column] = True
                matched[t, row] = True
                matched_ignored[t, row] = skip[column]
    return matched, matched_ignored


def _best_truth(
    pairs: Sequence[tuple[int, float]],
    threshold: float,
    taken: Sequence[bool],
    crowd: Sequence[bool],
    ignored: Sequence[bool],
) -> int | None:
    """Return the unmatched ground truth of highest IoU (last of equals); an ignored one only if no other matches."""
    best, best_overlap = None, threshold
    for column, overlap in pairs:
        if taken[column] and not crowd[column]:
            continue
        if best is not None and ignored[column] and not ignored[best]:
            break  # the rest is ignored too: evaluated ground truth comes first
        if overlap >= best_overlap:
            best, best_overlap = column, overlap
    return best


def curves(
    truths: Objects,
    detections: Objects,
    matches: Matches,
    ranges: np.ndarray,
    categories: int,
    max_dets: Sequence[int],
    recall_points: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision (T, R, K, A, M) at the recall points (R,), and maximum recall (T, K, A, M).

    Both are -1 where there is no ground truth. The detections of a class from all images are sorted by score; precision
    is made monotonically decreasing.
    """
    num_thresholds = matches.right.shape[1]
    shape = (num_thresholds, categories, len(ranges), len(max_dets))
    precision, recall = -np.ones((num_thresholds, len(recall_points), *shape[1:])), -np.ones(shape)
    counted = ~(truths.crowd | truths.outside(ranges))
    bounds = np.searchsorted(detections.category, np.arange(categories + 1))
    for k in range(categories):
        positives = (counted & (truths.category == k)).sum(axis=1)
        order = np.arange(bounds[k], bounds[k + 1])
        order = order[np.argsort(-detections.score[order], kind="stable")]
        for m, limit in enumerate(max_dets):
            used = order[detections.rank[order] < limit]
            for a in np.flatnonzero(positives):
                right = matches.right[a][:, used]
                wrong = ~right & ~matches.ignored[a][:, used]
                tp, fp = right.cumsum(axis=1, dtype=np.float64), wrong.cumsum(axis=1, dtype=np.float64)
                rates = tp / positives[a]
                values = tp / (fp + tp + np.spacing(1))
                values = np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
                recall[:, k, a, m] = rates[:, -1] if len(used) else 0
                for t in range(num_thresholds):
                    indices = np.searchsorted(rates[t], recall_points)
                    reached = indices < len(used)
                    precision[t, :, k, a, m] = 0
                    precision[t, reached, k, a, m] = values[t, indices[reached]]
    return precision, recall
