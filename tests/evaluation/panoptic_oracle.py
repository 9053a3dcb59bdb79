"""Panoptic quality as the COCO panoptic API defines it, one boolean mask after the other, to compare with.

Slow and plain on purpose; it shares no code with the library. `test_the_oracle_equals_panopticapi` holds it against the
official package wherever that is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Segments = Sequence[Mapping[str, Any]]
Image = tuple[np.ndarray, Segments, np.ndarray, Segments]  # ids (h, w), 0 void, and segments: of truth, of prediction


class Counts:
    """Sums over images for one category."""

    def __init__(self) -> None:
        self.iou, self.tp, self.fp, self.fn = 0.0, 0, 0, 0


def count_image(image: Image, counts: Mapping[int, Counts]) -> None:
    """Add what one image holds to the counts of its categories."""
    truth, truth_segments, predicted, predicted_segments = image
    void = truth == 0
    matched: set[tuple[str, int]] = set()
    for t in sorted(truth_segments, key=lambda segment: segment["id"]):
        for p in sorted(predicted_segments, key=lambda segment: segment["id"]):
            if t["category_id"] != p["category_id"] or t.get("iscrowd", 0):
                continue
            a, b = truth == t["id"], predicted == p["id"]
            common = int((a & b).sum())
            union = t.get("area", int(a.sum())) + int((b & ~void).sum()) - common
            if common and common / union > 0.5:
                counts[t["category_id"]].tp += 1
                counts[t["category_id"]].iou += common / union
                matched |= {("truth", t["id"]), ("predicted", p["id"])}
    crowd = {}  # of several crowds of a category, the last counts
    for t in truth_segments:
        if t.get("iscrowd", 0):
            crowd[t["category_id"]] = truth == t["id"]
        elif ("truth", t["id"]) not in matched:
            counts[t["category_id"]].fn += 1
    for p in predicted_segments:
        b = predicted == p["id"]
        excused = (b & (void | crowd.get(p["category_id"], void))).sum()
        if ("predicted", p["id"]) not in matched and excused * 2 <= b.sum():
            counts[p["category_id"]].fp += 1


def panoptic_quality(images: Iterable[Image], is_thing: Mapping[int, bool]) -> dict[str, dict[Any, Any]]:
    """Return {"All" | "Things" | "Stuff": {"pq", "sq", "rq", "n"}, "per_class": {category: {"pq", "sq", "rq"}}}.

    "per_class" holds the categories that appear; a group without any is NaN. The keys of ``is_thing`` are the category
    ids.
    """
    counts = {category: Counts() for category in is_thing}
    for image in images:
        count_image(image, counts)
    per_class = {}
    for category, c in counts.items():
        if c.tp + c.fp + c.fn:
            half = c.tp + c.fp / 2 + c.fn / 2
            per_class[category] = {"pq": c.iou / half, "sq": c.iou / c.tp if c.tp else 0.0, "rq": c.tp / half}
    results: dict[str, dict[Any, Any]] = {"per_class": per_class}
    for name, kinds in (("All", (False, True)), ("Things", (True,)), ("Stuff", (False,))):
        group = [scores for category, scores in per_class.items() if is_thing[category] in kinds]
        results[name] = {"n": len(group)}
        for metric in ("pq", "sq", "rq"):
            total = 0.0
            for scores in group:  # from left to right: sum() of Python 3.12 rounds otherwise
                total += scores[metric]
            results[name][metric] = total / len(group) if group else float("nan")
    return results
