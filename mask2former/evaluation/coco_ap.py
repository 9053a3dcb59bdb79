"""COCO average precision: pycocotools' numbers to the last digit, its slowest loop replaced.

pycocotools supplies run-length IoU and the precision-recall accumulation. Its greedy matching visits every
(threshold, detection, ground truth) triple in Python, minutes for crowded pictures; here only pairs above the
lowest threshold are visited. Its summary, which assumes 100 detections per image, is not used.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation.coco_truth import index_coco

AREAS = ("all", "small", "medium", "large")


class _SparseMatchingCOCOeval(COCOeval):
    """COCOeval whose matching looks only at candidates; same results."""

    def evaluateImg(
        self, image_id: Any, category_id: Any, area_range: Sequence[float], max_det: int
    ) -> dict[str, Any] | None:
        truths = self._gts[image_id, category_id]
        detections = self._dts[image_id, category_id]
        if not truths and not detections:
            return None
        low, high = area_range
        ignored = np.array([bool(t["ignore"] or not low <= t["area"] <= high) for t in truths], dtype=bool)
        truth_order = np.argsort(ignored, kind="stable")  # those that count come first
        ignored = ignored[truth_order]
        truths = [truths[i] for i in truth_order]
        scores = np.array([-d["score"] for d in detections])
        detections = [detections[i] for i in np.argsort(scores, kind="stable")[:max_det]]

        matched, matched_ignored = self._match(
            image_id, category_id, truths, truth_order, ignored, len(detections)
        )
        outside = np.array([not low <= d["area"] <= high for d in detections], dtype=bool)
        matched_ignored |= ~matched & outside
        return {  # what COCOeval.accumulate reads
            "dtMatches": matched,
            "dtScores": [d["score"] for d in detections],
            "gtIgnore": ignored.astype(np.int64),
            "dtIgnore": matched_ignored,
        }

    def _match(
        self,
        image_id: Any,
        category_id: Any,
        truths: Sequence[Mapping[str, Any]],
        truth_order: np.ndarray,
        ignored: np.ndarray,
        count: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Greedy matching by falling score: (T, D) matched, and (T, D) matched to an ignored truth."""
        thresholds = np.minimum(self.params.iouThrs, 1 - 1e-10)
        matched = np.zeros((len(thresholds), count), dtype=bool)
        matched_ignored = np.zeros_like(matched)
        overlaps = self.ious[image_id, category_id]
        if len(overlaps) == 0:
            return matched, matched_ignored
        overlaps = overlaps[:count, truth_order]
        crowd = [bool(t["iscrowd"]) for t in truths]
        candidates: dict[int, list[tuple[int, float]]] = {}
        for row, column in zip(*np.nonzero(overlaps >= thresholds.min()), strict=True):
            candidates.setdefault(int(row), []).append((int(column), overlaps[row, column]))
        for t, threshold in enumerate(thresholds):
            taken = [False] * len(truths)
            for row, pairs in candidates.items():
                column = _best_truth(pairs, threshold, taken, crowd, ignored)
                if column is not None:
                    taken[column] = True
                    matched[t, row] = True
                    matched_ignored[t, row] = ignored[column]
        return matched, matched_ignored


def _best_truth(
    pairs: Sequence[tuple[int, float]],
    threshold: float,
    taken: Sequence[bool],
    crowd: Sequence[bool],
    ignored: np.ndarray,
) -> int | None:
    """COCO's rule: the free truth of highest IoU (last of equals); an ignored one only when no other fits."""
    best, best_overlap = None, threshold
    for column, overlap in pairs:
        if taken[column] and not crowd[column]:
            continue
        if best is not None and ignored[column] and not ignored[best]:
            break  # the rest is ignored too: counted truths come first
        if overlap >= best_overlap:
            best, best_overlap = column, overlap
    return best


@dataclass(frozen=True)
class CocoScores:
    """Accumulated precision and recall, from 0 to 1; -1 where there is no ground truth.

    Attributes:
        precision: (T, R, K, A, M) over IoU thresholds, recall points, categories, area ranges, detection
            limits.
        recall: (T, K, A, M) largest recall.
        iou_thresholds: (T,) 0.50, 0.55 ... 0.95.
        category_ids: the K category ids, rising.
        max_dets: the M limits of detections per image, rising; scores use the last.
    """

    precision: np.ndarray
    recall: np.ndarray
    iou_thresholds: np.ndarray
    category_ids: tuple[int, ...]
    max_dets: tuple[int, ...]

    def ap(self, iou: float | None = None, area: str = "all", category: int | None = None) -> float:
        """Average precision in percent, NaN without ground truth; over all thresholds if `iou` is None."""
        values = self.precision[..., AREAS.index(area), -1]
        if iou is not None:
            values = values[np.isclose(self.iou_thresholds, iou)]
        if category is not None:
            values = values[:, :, self.category_ids.index(category)]
        return _percent(values)

    def ar(self, area: str = "all") -> float:
        """Average recall in percent at the largest detection limit, NaN without ground truth."""
        return _percent(self.recall[..., AREAS.index(area), -1])


def _percent(values: np.ndarray) -> float:
    present = values[values > -1]
    return float(np.mean(present) * 100) if present.size else float("nan")


def evaluate_coco(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    task: str = "segm",
    max_dets: int = 100,
    image_ids: Sequence[Any] | None = None,
    category_ids: Sequence[int] | None = None,
) -> CocoScores:
    """Compare COCO results with ground truth.

    Args:
        truth: ground truth with annotations, as `load_coco_truth` returns it.
        results: COCO result records (`image_id`, `category_id`, `score`, and `segmentation` as compressed
            RLE or `bbox` as XYWH). Not changed. May be empty: precision is then 0 wherever there is ground
            truth.
        task: "segm" or "bbox".
        max_dets: detections per image and category that count, best first.
        image_ids: evaluate only these images; all of the ground truth if None.
        category_ids: evaluate only these categories; all of the ground truth if None.

    Raises:
        ValueError: unknown task or image, ground truth without what the task compares, or a mask whose size
            is not its image's.
    """
    if task not in ("segm", "bbox"):
        raise ValueError(f"task must be 'segm' or 'bbox', got {task!r}")
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, got {max_dets}")
    check_truth(truth, task)
    _check_results(truth, results, task)
    engine = _SparseMatchingCOCOeval(truth, _index_results(truth, results, task), task)
    engine.params.maxDets = sorted({limit for limit in (1, 10) if limit < max_dets} | {max_dets})
    if image_ids is not None:
        engine.params.imgIds = list(image_ids)
    if category_ids is not None:
        engine.params.catIds = list(category_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        engine.evaluate()
        engine.accumulate()
    return CocoScores(
        precision=engine.eval["precision"],
        recall=engine.eval["recall"],
        iou_thresholds=engine.params.iouThrs,
        category_ids=tuple(int(c) for c in engine.params.catIds),
        max_dets=tuple(engine.params.maxDets),
    )


def check_truth(truth: COCO, task: str) -> None:
    """Raise ValueError if an annotation lacks what the task ("segm" or "bbox") compares."""
    field = "segmentation" if task == "segm" else "bbox"
    for annotation in truth.dataset["annotations"]:
        if field not in annotation:
            raise ValueError(
                f"ground truth of image {annotation['image_id']} has no {field!r}, "
                f"so {task} AP cannot be computed"
            )


def _check_results(truth: COCO, results: Sequence[Mapping[str, Any]], task: str) -> None:
    for result in results:
        image = truth.imgs.get(result["image_id"])
        if image is None:
            raise ValueError(
                f"prediction for image {result['image_id']!r}, which the ground truth does not list"
            )
        if task == "segm":
            expected = [image["height"], image["width"]]
            found = list(result["segmentation"]["size"])
            if found != expected:
                raise ValueError(
                    f"image {result['image_id']!r} ({image.get('file_name')}): predicted masks are "
                    f"(h, w) = {found}, the annotation file says {expected}; correct its height and width"
                )


def _index_results(truth: COCO, results: Sequence[Mapping[str, Any]], task: str) -> COCO:
    """Results as pycocotools sees them; unlike COCO.loadRes, also when there are none."""
    if task == "segm":
        shapes = [{"segmentation": r["segmentation"]} for r in results]
        # One by one: with numpy 2, pycocotools cannot take the areas of a list of more than 255 masks.
        areas = [mask_util.area(r["segmentation"]) for r in results]
    else:
        shapes = [{"bbox": r["bbox"]} for r in results]
        areas = [r["bbox"][2] * r["bbox"][3] for r in results]
    annotations = [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "score": result["score"],
            "iscrowd": 0,
            "area": area,
            **shape,
        }
        for number, (result, shape, area) in enumerate(zip(results, shapes, areas, strict=True), start=1)
    ]
    return index_coco(
        {
            "images": truth.dataset["images"],
            "categories": truth.dataset["categories"],
            "annotations": annotations,
        }
    )
