"""Boundary AP of a result file (Cheng et al., "Boundary IoU", CVPR 2021)."""

from __future__ import annotations

import os

from ..utils.file_io import read_json
from ..utils.tables import distinct
from .boundary_iou import DILATION_RATIO
from .coco_ap import evaluate_coco
from .ground_truth import load_coco_truth
from .result_records import checked_results


def boundary_ap(
    truth_json: str | os.PathLike[str],
    results_json: str | os.PathLike[str],
    dilation_ratio: float = DILATION_RATIO,
    iou_type: str = "boundary",
) -> dict[str, float]:
    """Compute AP of a result file.

    Args:
        truth_json: COCO instance annotations.
        results_json: COCO results, as `coco_instances_results.json` of an evaluation.
        dilation_ratio: width of a boundary as a share of the image's diagonal.
        iou_type: "boundary", or "segm" or "bbox" for the usual AP.

    Returns:
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100" and `"AP-<class>"` in percent, NaN without ground truth.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed or has no annotations, or the two do not match; names file
            and record (BadRecordError).
    """
    truth = load_coco_truth(truth_json, needs=["bbox" if iou_type == "bbox" else "segmentation"])
    if "annotations" not in truth.dataset:
        raise ValueError(f"{truth_json} has no annotations: AP needs ground truth, not a test set")
    results = read_json(results_json, "instance results")
    if not isinstance(results, list):
        raise ValueError(f"{results_json}: COCO results are a list of records, got {type(results).__name__}")
    records = checked_results(results, truth, iou_type, os.fspath(results_json))
    scores = evaluate_coco(truth, records, iou_type, dilation_ratio=dilation_ratio, checked=True)
    names = distinct([str(truth.cats[i].get("name", i)) for i in scores.category_ids])
    return {**scores.summary(), **scores.per_class(names)}
