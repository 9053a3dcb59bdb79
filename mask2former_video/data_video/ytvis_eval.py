"""Evaluation of video instances; `mask2former.evaluation.ytvis_evaluation` defines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._sibling import core
from .datasets.ytvis_api.ytvos import YTVOS
from .datasets.ytvis_api.ytvoseval import YTVOSeval

_evaluation = core("evaluation.ytvis_evaluation")

YTVISEvaluator = _evaluation.YTVISEvaluator

__all__ = ["YTVISEvaluator", "_evaluate_predictions_on_coco", "instances_to_coco_json_video"]


def instances_to_coco_json_video(inputs: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any]) -> Any:
    """Return the result records of one clip; see `clip_to_records`, whose RLEs are None for empty masks.

    Args:
        inputs: the batch of one clip, with "video_id".
        outputs: its result, as VideoMaskFormer returns it.
    """
    (clip,) = inputs
    return _evaluation.clip_to_records(outputs, clip["video_id"])


def _evaluate_predictions_on_coco(
    coco_gt: YTVOS, coco_results: Sequence[Mapping[str, Any]], img_ids: Sequence[int] | None = None
) -> YTVOSeval:
    """Compare result records with ground truth, write the summary to the standard output, and return the evaluation.

    Args:
        coco_gt: ground truth.
        coco_results: records in the submission format, categories as in the annotation file.
        img_ids: ids of the videos to evaluate; all if None.
    """
    evaluation = YTVOSeval(coco_gt, coco_gt.loadRes(coco_results))
    if img_ids is not None:
        evaluation.params.vidIds = list(img_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
