"""Evaluation of video instances; `mask2former.evaluation.ytvis_evaluation` defines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._sibling import core

_evaluation = core("evaluation.ytvis_evaluation")

YTVISEvaluator = _evaluation.YTVISEvaluator

__all__ = ["YTVISEvaluator", "instances_to_coco_json_video"]


def instances_to_coco_json_video(inputs: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any]) -> Any:
    """Return the result records of one clip; see `clip_to_records`, whose RLEs are None for empty masks.

    Args:
        inputs: the batch of one clip, with "video_id".
        outputs: its result, as VideoMaskFormer returns it.
    """
    (clip,) = inputs
    return _evaluation.clip_to_records(outputs, clip["video_id"])
