"""Boundary AP of a result file (Cheng et al., "Boundary IoU", CVPR 2021)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..utils.file_io import read_json
from ..utils.tables import distinct
from .boundary_iou import DILATION_RATIO
from .coco_ap import evaluate_coco
from .ground_truth import load_coco_truth


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
            and record.
    """
    truth = load_coco_truth(truth_json)
    if "annotations" not in truth.dataset:
        raise ValueError(f"{truth_json} has no annotations: AP needs ground truth, not a test set")
    results = read_json(results_json, "instance results")
    if not isinstance(results, list):
        raise ValueError(f"{results_json}: COCO results are a list of records, got {type(results).__name__}")
    for position, record in enumerate(results):
        _check_record(record, "bbox" if iou_type == "bbox" else "segmentation", f"{results_json}: record {position}")
    try:
        scores = evaluate_coco(truth, results, iou_type, dilation_ratio=dilation_ratio)
    except ValueError as error:
        raise ValueError(f"{results_json} against {truth_json}: {error}") from error
    names = distinct([str(truth.cats[i].get("name", i)) for i in scores.category_ids])
    return {**scores.summary(), **scores.per_class(names)}


def _check_record(record: Any, field: str, where: str) -> None:
    keys = ("image_id", "category_id", "score", field)
    missing = [key for key in keys if not isinstance(record, Mapping) or key not in record]
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(missing)}")
    if field == "segmentation" and not isinstance(record[field], Mapping):
        raise ValueError(f"{where}: segmentation is not an RLE with size and counts")
