"""Evaluation: instance AP, panoptic quality and semantic IoU, and the table that picks them for a dataset."""

from __future__ import annotations

from mask2former.evaluation.builder import EvaluatorRequest, build_evaluator, register_evaluator
from mask2former.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from mask2former.evaluation.coco_ap import CocoScores, evaluate_coco
from mask2former.evaluation.coco_truth import load_coco_truth
from mask2former.evaluation.instance import InstanceSegEvaluator
from mask2former.evaluation.panoptic import PanopticEvaluator
from mask2former.evaluation.panoptic_truth import PanopticTruth
from mask2former.evaluation.rle import encode_label_map, encode_masks
from mask2former.evaluation.semantic import SemanticEvaluator
from mask2former.evaluation.semantic_pq import evaluate_semantic_pq

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "CocoScores",
    "EvaluatorRequest",
    "InstanceSegEvaluator",
    "PanopticEvaluator",
    "PanopticTruth",
    "SemanticEvaluator",
    "build_evaluator",
    "encode_label_map",
    "encode_masks",
    "evaluate_coco",
    "evaluate_semantic_pq",
    "load_coco_truth",
    "register_evaluator",
]
