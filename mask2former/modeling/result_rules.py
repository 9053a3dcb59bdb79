"""Which queries become results: settings, selection, and the segments of a panoptic map."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..structures.task import Task


@dataclass(frozen=True)
class Settings:
    """Requested results and their thresholds (MODEL.MASK_FORMER.TEST).

    Attributes:
        tasks: the requested results.
        topk: number of instances (TEST.DETECTIONS_PER_IMAGE).
        score_threshold: instances with a lower score are left out (TEST.SCORE_THRESHOLD).
        segment_threshold: segments with a lower score are left out of the panoptic map; others are what they were.
        object_mask_threshold: panoptic segmentation keeps queries with a higher class score.
        overlap_threshold: panoptic segmentation drops segments with a lower visible fraction.
        semantic_at_output_size: resize masks, not semantic scores, to the output size; implied by the other results.
        semantic_scores: "sem_seg" has the scores (K, h, w); False: the class with the best one (h, w), uint8, or int32
            for more than 255 classes, which takes less memory and time (TEST.SEMANTIC_SCORES).
        patches: results are for the CPU: instances may have `pred_patches`, a sequence of `Patch`, instead of
            `pred_masks`, and maps may be there already. That saves memory, and time where objects are small compared to
            the image.
        things: contiguous ids of thing classes; None: all classes are things.
        quality_power: exponent of the predicted mask quality in the scores of instances, where there is one
            (MODEL.MASK_FORMER.MASK_QUALITY.POWER).
    """

    tasks: frozenset[Task] = frozenset({Task.SEMANTIC})
    topk: int = 100
    score_threshold: float = 0.0
    segment_threshold: float = 0.0
    object_mask_threshold: float = 0.0
    overlap_threshold: float = 0.0
    semantic_at_output_size: bool = False
    semantic_scores: bool = True
    patches: bool = False
    things: Collection[int] | None = None
    quality_power: float = 1.0

    @property
    def objects(self) -> bool:
        """Return whether results of selected queries are requested, for which numbers of them are looked at."""
        return bool(self.tasks - {Task.SEMANTIC})

    @property
    def at_output_size(self) -> bool:
        """Return whether masks are resized to the output size before results are computed."""
        return self.semantic_at_output_size or self.objects

    def is_thing(self, label: int) -> bool:
        """Return whether contiguous class `label` is a thing."""
        return self.things is None or label in self.things


def quality_factors(quality: Tensor | None, s: Settings) -> Tensor | None:
    """Return the (Q,) factors in [0, 1] of the class scores of instances, of predicted mask quality (Q,); or None."""
    return None if quality is None or not s.quality_power else quality.float() ** s.quality_power


def best_pairs(scores: Tensor, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the best (query, class) pairs of scores (Q, K + 1); returns scores, classes and queries, best first."""
    classes = scores.shape[1] - 1
    flat = scores[:, :-1].flatten()
    best, index = flat.topk(min(topk, len(flat)))
    return best, index % classes, index // classes


def panoptic_segments(
    labels: Sequence[int],
    scores: Sequence[float],
    areas: Sequence[int],
    won: Sequence[int],
    visible: Sequence[int],
    s: Settings,
) -> tuple[list[int], list[dict[str, Any]]]:
    """Make segments of queries that compete for pixels; one segment per stuff class.

    Args:
        labels, scores: best class and its score of each query.
        areas: pixels of each mask.
        won: pixels that each query wins.
        visible: those of them inside its mask.
        s: settings.

    Returns:
        The segment id of each query (0: dropped), and the segments as detectron2 describes them.
    """
    ids = [0] * len(areas)
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for i, label in enumerate(labels):
        if won[i] == 0 or areas[i] == 0 or visible[i] == 0:
            continue
        if won[i] / areas[i] < s.overlap_threshold:
            continue
        if label in stuff:
            ids[i] = int(stuff[label]["id"])
            stuff[label]["area"] += visible[i]
            continue
        thing = s.is_thing(label)
        segment: dict[str, Any] = {
            "id": len(segments) + 1,
            "isthing": thing,
            "category_id": label,
            "score": scores[i],
            "area": visible[i],
        }
        ids[i] = segment["id"]
        segments.append(segment)
        if not thing:
            stuff[label] = segment
    kept = [segment for segment in segments if segment["score"] >= s.segment_threshold]
    if len(kept) < len(segments):
        left = {segment["id"] for segment in kept}
        ids = [i if i in left else 0 for i in ids]
    return ids, kept
