"""COCO average precision, equal to pycocotools to the last digit, without its Python loops.

pycocotools supplies run-length IoU and the thresholds. Matching and curves are in `coco_matching`. Boundary AP is the
same with boundary IoU instead of mask IoU.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from .boundary_iou import DILATION_RATIO, boundary_overlap, boundary_width
from .coco_matching import Objects, Overlap, curves, match
from .result_records import checked_results

TASKS = ("segm", "bbox", "boundary")
AREAS = ("all", "small", "medium", "large")


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
        """Return average precision in percent, NaN without ground truth; over all thresholds if `iou` is None."""
        values = self.precision[..., AREAS.index(area), -1]
        if iou is not None:
            values = values[np.isclose(self.iou_thresholds, iou)]
        if category is not None:
            values = values[:, :, self.category_ids.index(category)]
        return _percent(values)

    def ar(self, area: str = "all") -> float:
        """Return average recall in percent at the largest detection limit, NaN without ground truth."""
        return _percent(self.recall[..., AREAS.index(area), -1])

    @property
    def eval(self) -> dict[str, np.ndarray]:
        """Return {"precision", "recall"}, as pycocotools' `COCOeval.eval` has them."""
        return {"precision": self.precision, "recall": self.recall}

    @property
    def params(self) -> Params:
        """Return thresholds, categories, area ranges and limits, as pycocotools' `COCOeval.params` has them."""
        params = Params("segm")
        params.iouThrs, params.catIds, params.maxDets = (
            self.iou_thresholds,
            list(self.category_ids),
            list(self.max_dets),
        )
        return params

    @property
    def stats(self) -> np.ndarray:
        """Return the 12 numbers of pycocotools' `COCOeval.stats`, from 0 to 1, -1 where there is no ground truth."""
        precisions = [self.ap(), self.ap(iou=0.5), self.ap(iou=0.75), *(self.ap(area=area) for area in AREAS[1:])]
        limits = [_percent(self.recall[:, :, 0, min(n, len(self.max_dets) - 1)]) for n in range(3)]
        values = np.array([*precisions, *limits, *(self.ar(area) for area in AREAS[1:])])
        return np.where(np.isnan(values), -1.0, values / 100)

    def summary(self) -> dict[str, float]:
        """Return the metrics of a COCO table, in percent."""
        return {
            "AP": self.ap(),
            "AP50": self.ap(iou=0.5),
            "AP75": self.ap(iou=0.75),
            "APs": self.ap(area="small"),
            "APm": self.ap(area="medium"),
            "APl": self.ap(area="large"),
            f"AR@{self.max_dets[-1]}": self.ar(),
        }

    def per_class(self, names: Sequence[str]) -> dict[str, float]:
        """Return `"AP-<name>"` in percent for each category, in their order; empty where there is only one."""
        if len(names) < 2:
            return {}
        return {f"AP-{n}": self.ap(category=i) for n, i in zip(names, self.category_ids, strict=True)}


def _percent(values: np.ndarray) -> float:
    present = values[values > -1]
    return float(np.mean(present) * 100) if present.size else float("nan")


def _order(image_id: Any) -> tuple[bool, Any]:
    """Return a key to sort image ids by: numbers first, then texts."""
    return isinstance(image_id, str), image_id


def evaluate_coco(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    task: str = "segm",
    max_dets: int = 100,
    image_ids: Sequence[Any] | None = None,
    category_ids: Sequence[int] | None = None,
    dilation_ratio: float = DILATION_RATIO,
    *,
    checked: bool = False,
) -> CocoScores:
    """Compare COCO results with ground truth.

    Args:
        truth: ground truth with annotations, as `load_coco_truth` returns it.
        results: COCO result records (`image_id`, `category_id`, `score`, and `segmentation` as RLE or `bbox` as
            XYWH). Not changed. May be empty: precision is then 0 wherever there is ground truth.
        task: "segm", "bbox", or "boundary": masks compared by the smaller of mask IoU and boundary IoU.
        max_dets: detections per image and category that are counted, best first.
        image_ids: evaluate only these images; all images of the ground truth if None.
        category_ids: evaluate only these categories; all categories of the ground truth if None.
        dilation_ratio: width of a boundary as a share of the image's diagonal.
        checked: the RLEs of the results come from `encode_masks`, and only their sizes are compared.

    Raises:
        ValueError: unknown task or image, ground truth without what the task compares, or a mask whose size
            is not its image's.
        BadRecordError: a record is malformed.
    """
    check_task(task)
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, got {max_dets}")
    boundary_width((1, 1), dilation_ratio)  # check the ratio for every task
    check_truth(truth, task)
    if checked:
        _check_sizes(truth, results, task)
    else:
        results = checked_results(results, truth, task)
    parameters = Params("bbox" if task == "bbox" else "segm")
    images = {i: n for n, i in enumerate(sorted(set(truth.imgs if image_ids is None else image_ids), key=_order))}
    selected = sorted({int(c) for c in (truth.cats if category_ids is None else category_ids)})
    categories = {c: n for n, c in enumerate(selected)}

    def truth_shape(record: Mapping[str, Any]) -> tuple[Any, float]:
        return (record["bbox"] if task == "bbox" else _rle(record, truth)), record["area"]

    def result_shape(record: Mapping[str, Any]) -> tuple[Any, float]:
        if task == "bbox":
            return record["bbox"], record["bbox"][2] * record["bbox"][3]
        return record["segmentation"], float(mask_util.area(record["segmentation"]))

    truths = Objects.of(truth.dataset["annotations"], truth_shape, images, categories)
    detections = Objects.of(results, result_shape, images, categories, max_dets)
    ranges = np.array(parameters.areaRng)
    matches = match(truths, detections, _overlap(task, dilation_ratio), parameters.iouThrs, ranges)
    limits = sorted({limit for limit in (1, 10) if limit < max_dets} | {max_dets})
    precision, recall = curves(truths, detections, matches, ranges, len(categories), limits, parameters.recThrs)
    return CocoScores(precision, recall, parameters.iouThrs, tuple(categories), tuple(limits))


def _overlap(task: str, dilation_ratio: float) -> Overlap:
    if task == "boundary":
        return functools.partial(boundary_overlap, least=0.5, dilation_ratio=dilation_ratio)
    return mask_util.iou


def _rle(record: Mapping[str, Any], truth: COCO) -> Any:
    rle = record["segmentation"]
    if isinstance(rle, dict) and not isinstance(rle["counts"], list):
        return rle
    return truth.annToRLE(record)  # polygons or uncompressed RLE


def check_task(task: str) -> None:
    """Raise ValueError unless `task` is one of TASKS."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(map(repr, TASKS))}, got {task!r}")


def check_truth(truth: COCO, task: str) -> None:
    """Raise ValueError if an annotation lacks what the task compares."""
    field = "bbox" if task == "bbox" else "segmentation"
    for annotation in truth.dataset["annotations"]:
        if field not in annotation:
            raise ValueError(
                f"ground truth of image {annotation['image_id']} has no {field!r}, so {task} AP cannot be computed"
            )


def _check_sizes(truth: COCO, results: Sequence[Mapping[str, Any]], task: str) -> None:
    for result in results:
        image = truth.imgs.get(result["image_id"])
        if image is None:
            raise ValueError(f"prediction for image {result['image_id']!r}, which the ground truth does not list")
        if task != "bbox":
            expected = [image["height"], image["width"]]
            size = list(result["segmentation"]["size"])
            if size != expected:
                raise ValueError(
                    f"image {result['image_id']!r} ({image.get('file_name')}): predicted masks are "
                    f"(h, w) = {size}, the annotation file says {expected}; correct its height and width"
                )
