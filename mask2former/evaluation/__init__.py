"""Evaluation: instance AP, panoptic quality and semantic IoU, and the registry that selects evaluators of a dataset."""

from __future__ import annotations

from ..structures.rle import encode_label_map, encode_masks
from .builder import EvaluatorRequest, build_evaluator, register_evaluator
from .cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .coco_ap import CocoScores, evaluate_coco
from .ground_truth import PanopticTruth, load_coco_truth
from .instance_evaluation import InstanceSegEvaluator
from .panoptic_evaluation import PanopticEvaluator
from .semantic_evaluation import SemanticEvaluator
from .semantic_pq import evaluate_semantic_pq

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
