"""Matching of detections and ground truth as COCO does it, for all images, classes, sizes and thresholds at once.

COCO's rule is greedy: by falling score, each detection takes the free ground truth of highest IoU above the
threshold. The COCO API visits every (threshold, size, detection, ground truth) in Python. Here only pairs above the
lowest threshold are looked at, and where no detection has a choice of two objects, which is almost everywhere, sizes
cannot change who gets what and arrays do the rest. The results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Overlap = Callable[[list[Any], list[Any], list[int]], np.ndarray]  # detections, truths, crowd -> IoU (D, G)


@dataclass(frozen=True)
class Objects:
    """Truths or detections, sorted by class, then image, then falling score (detections) or as they came.

    Attributes:
        category, image: (N,) int64, positions in the lists of evaluated classes and images.
        rank: (N,) int64, position among those of the same class and image.
        area: (N,) float64, pixels.
        score: (N,) float64; 0 for truths.
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
        """Of COCO records; those of other images and classes, and beyond `limit` per pair, are left out.

        `describe` gives shape and area of a record.
        """
        used = [i for i, r in enumerate(records) if r["image_id"] in images and r["category_id"] in categories]
        category = np.array([categories[records[i]["category_id"]] for i in used], dtype=np.int64)
        image = np.array([images[records[i]["image_id"]] for i in used], dtype=np.int64)
        score = np.array([records[i].get("score", 0) for i in used], dtype=np.float64)
        crowd = np.array([bool(records[i].get("iscrowd", 0)) for i in used], dtype=bool)
        order = np.lexsort((-score, image, category))  # stable: equals stay as they came
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
        """(A, N) bool: not of that size; ranges (A, 2) of areas, both ends included."""
        return (self.area < ranges[:, :1]) | (self.area > ranges[:, 1:])


def _starts(keys: np.ndarray) -> np.ndarray:
    """For each element of sorted keys (N,), the position of the first that equals it."""
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))


@dataclass(frozen=True)
class Matches:
    """What COCO's curves are made of.

    Attributes:
        right: (A, T, D) bool, matched to a ground truth that counts.
        ignored: (A, T, D) bool, matched to a crowd or a ground truth of another size, or unmatched and of another size.
    """

    right: np.ndarray
    ignored: np.ndarray


def match(
    truths: Objects, detections: Objects, overlap: Overlap, thresholds: np.ndarray, ranges: np.ndarray
) -> Matches:
    """Match all detections.

    Args:
        truths, detections: of the same images and classes.
        overlap: IoU of the detections and truths of one image and class.
        thresholds: (T,) lowest IoU of a match, rising.
        ranges: (A, 2) areas of truths that count.
    """
    thresholds = np.minimum(thresholds, 1 - 1e-10)
    ignored_truths = truths.crowd | truths.outside(ranges)
    shape = (len(ranges), len(thresholds), len(detections.area))
    matched, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    easy: list[np.ndarray] = []  # columns: detection, ground truth, IoU
    for found, true in _common_pairs(truths, detections):
        ious = overlap(detections.shapes[found], truths.shapes[true], truths.crowd[true].astype(np.uint8).tolist())
        rows, columns = np.nonzero(ious >= thresholds[0])
        if not len(rows):
            continue
        if (rows[1:] != rows[:-1]).all():
            easy.append(np.stack([rows + found.start, columns + true.start, ious[rows, columns]]))
            continue
        for a in range(len(ranges)):
            matched[a, :, found], ignored[a, :, found] = _greedy(
                ious, truths.crowd[true], ignored_truths[a, true], thresholds
            )
    if easy:
        _match_without_choice(np.concatenate(easy, axis=1), truths, ignored_truths, thresholds, matched, ignored)
    ignored |= ~matched & detections.outside(ranges)[:, None]
    return Matches(right=matched & ~ignored, ignored=ignored)


def _common_pairs(truths: Objects, detections: Objects) -> list[tuple[slice, slice]]:
    """(detections, truths) of each image and class that has both."""
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
    """Match detections with one candidate each, (3, M): a ground truth goes to the best of them, a crowd takes all."""
    found, true, ious = candidates[0].astype(np.int64), candidates[1].astype(np.int64), candidates[2]
    order = np.lexsort((found, true))
    found, true, ious = found[order], true[order], ious[order]
    crowd = truths.crowd[true]
    for t, threshold in enumerate(thresholds):
        good = np.flatnonzero(ious >= threshold)
        first = np.ones(len(good), dtype=bool)
        first[1:] = true[good[1:]] != true[good[:-1]]
        taken = good[first | crowd[good]]
        matched[:, t, found[taken]] = True
        ignored[:, t, found[taken]] = ignored_truths[:, true[taken]]


def _greedy(
    ious: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's rule for the ious (D, G) of one image and class: (T, D) matched, (T, D) matched to an ignored truth."""
    order = np.argsort(ignored, kind="stable")  # those that count come first
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
    """COCO's rule: the free ground truth of highest IoU (last of equals); an ignored one only when no other fits."""
    best, best_overlap = None, threshold
    for column, overlap in pairs:
        if taken[column] and not crowd[column]:
            continue
        if best is not None and ignored[column] and not ignored[best]:
            break  # the rest is ignored too: counted truths come first
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
    """Precision (T, R, K, A, M) at the recall points (R,), and largest recall (T, K, A, M); -1 without truths.

    The detections of a class from all images are put in one order by score; precision is made to fall only.
    """
    steps = matches.right.shape[1]
    shape = (steps, categories, len(ranges), len(max_dets))
    precision, recall = -np.ones((steps, len(recall_points), *shape[1:])), -np.ones(shape)
    counted = ~(truths.crowd | truths.outside(ranges))
    bounds = np.searchsorted(detections.category, np.arange(categories + 1))
    for k in range(categories):
        wanted = (counted & (truths.category == k)).sum(axis=1)
        own = np.arange(bounds[k], bounds[k + 1])
        own = own[np.argsort(-detections.score[own], kind="stable")]
        for m, limit in enumerate(max_dets):
            used = own[detections.rank[own] < limit]
            for a in np.flatnonzero(wanted):
                right = matches.right[a][:, used]
                wrong = ~right & ~matches.ignored[a][:, used]
                tp, fp = right.cumsum(axis=1, dtype=np.float64), wrong.cumsum(axis=1, dtype=np.float64)
                rates = tp / wanted[a]
                values = tp / (fp + tp + np.spacing(1))
                values = np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
                recall[:, k, a, m] = rates[:, -1] if len(used) else 0
                for t in range(steps):
                    places = np.searchsorted(rates[t], recall_points)
                    reached = places < len(used)
                    precision[t, :, k, a, m] = 0
                    precision[t, reached, k, a, m] = values[t, places[reached]]
    return precision, recall
