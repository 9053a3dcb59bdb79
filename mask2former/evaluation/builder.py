"""Evaluators of a dataset, selected by its `evaluator_type` and the enabled prediction tasks.

A new dataset type needs one `register_evaluator` call per task.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, LVISEvaluator

from ..structures.task import IMAGE_TASKS, Task, tasks_of
from .cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .cityscapes_scripts import give_old_numpy
from .instance_evaluation import InstanceSegEvaluator
from .panoptic_evaluation import PanopticEvaluator
from .semantic_evaluation import SemanticEvaluator
from .ytvis_evaluation import YTVISEvaluator


@dataclass(frozen=True)
class EvaluatorRequest:
    """Arguments of a factory: the config, the dataset, and the directory for results (None: not written)."""

    cfg: CfgNode
    dataset_name: str
    output_dir: str | None


Factory = Callable[[EvaluatorRequest], DatasetEvaluator]

_FACTORIES: dict[str, dict[Task, Factory]] = {}  # by evaluator_type


def register_evaluator(evaluator_type: str, switch: str, factory: Factory) -> None:
    """Register `factory` for datasets of `evaluator_type`, used when MODEL.MASK_FORMER.TEST.`switch` is on.

    `switch` may also be the task itself. A later call for the same pair replaces the earlier one. Raises ValueError
    for an unknown switch.
    """
    for task in IMAGE_TASKS:
        if switch in (task, task.switch):
            _FACTORIES.setdefault(evaluator_type, {})[task] = factory
            return
    raise ValueError(f"switch must be one of {', '.join(task.switch for task in IMAGE_TASKS)}, got {switch!r}")


def _option(node: CfgNode, key: str, default: Any) -> Any:
    return node.get(key, default)


def _skips(request: EvaluatorRequest) -> bool:
    return bool(_option(request.cfg.DATALOADER, "SKIP_BAD_RECORDS", False))


def _returned(request: EvaluatorRequest, key: str) -> int | None:
    """Return how many objects can be found: a query has one mask, also if it is returned with several classes."""
    model = _option(request.cfg.MODEL, "MASK_FORMER", {})
    numbers = (_option(request.cfg.TEST, key, None), model.get("NUM_OBJECT_QUERIES"))
    return min((number for number in numbers if number is not None), default=None)


def instance_ap(request: EvaluatorRequest) -> DatasetEvaluator:
    """Build the COCO AP evaluator, with as many detections as the model returns and at least COCO's 100."""
    return InstanceSegEvaluator(
        request.dataset_name,
        tasks=_option(request.cfg.TEST, "INSTANCE_TASKS", None),
        output_dir=request.output_dir,
        max_dets_per_image=max(100, request.cfg.TEST.DETECTIONS_PER_IMAGE),
        skip_bad_records=_skips(request),
        returned=_returned(request, "DETECTIONS_PER_IMAGE"),
    )


def panoptic_quality(request: EvaluatorRequest) -> DatasetEvaluator:
    """Build the PQ evaluator, which works in memory."""
    return PanopticEvaluator(
        request.dataset_name,
        request.output_dir,
        save_predictions=_option(request.cfg.TEST, "SAVE_PANOPTIC", False),
        skip_bad_records=_skips(request),
    )


def semantic_iou(request: EvaluatorRequest) -> DatasetEvaluator:
    """Build the mIoU evaluator, on label maps or on labels made from panoptic annotations."""
    return SemanticEvaluator(
        request.dataset_name,
        output_dir=request.output_dir,
        boundary=_option(request.cfg.TEST, "BOUNDARY_IOU", False),
        panoptic_quality=_option(request.cfg.TEST, "SEMANTIC_PQ", False),
        skip_bad_records=_skips(request),
    )


def cityscapes_iou(request: EvaluatorRequest) -> DatasetEvaluator:
    """Build the evaluator of IoU by the official Cityscapes script."""
    return CityscapesSemSegEvaluator(request.dataset_name)


def cityscapes_ap(request: EvaluatorRequest) -> DatasetEvaluator:
    """Build the evaluator of AP by the official Cityscapes script."""
    return CityscapesInstanceEvaluator(request.dataset_name)


def lvis_ap(request: EvaluatorRequest) -> DatasetEvaluator:
    """Build detectron2's LVISEvaluator: AP by the lvis package, with at least 300 detections per image.

    Raises ValueError when lvis is not installed.
    """
    try:
        import lvis.eval
    except ImportError as error:
        raise ValueError(
            f"evaluating dataset {request.dataset_name!r} requires lvis ({error}): pip install lvis"
        ) from error
    give_old_numpy(lvis.eval)
    tasks = [task for task in _option(request.cfg.TEST, "INSTANCE_TASKS", ["segm"]) if task != "boundary"]
    return LVISEvaluator(
        request.dataset_name,
        tasks=tuple(tasks),
        output_dir=request.output_dir,
        max_dets_per_image=max(300, request.cfg.TEST.DETECTIONS_PER_IMAGE),
    )


def video_ap(request: EvaluatorRequest) -> DatasetEvaluator:
    """Build the YouTube-VIS evaluator: AP, or results.json alone where only a server has the ground truth."""
    windows = _option(request.cfg.TEST, "WINDOW_FRAMES", 0)  # of a long clip, each returns that many
    return YTVISEvaluator(
        request.dataset_name,
        output_dir=request.output_dir,
        returned=None if windows else _returned(request, "DETECTIONS_PER_VIDEO"),
    )


register_evaluator("ytvis", Task.INSTANCE, video_ap)
register_evaluator("coco", Task.INSTANCE, instance_ap)
register_evaluator("sem_seg", Task.SEMANTIC, semantic_iou)
register_evaluator("lvis", Task.INSTANCE, lvis_ap)
register_evaluator("cityscapes_instance", Task.INSTANCE, cityscapes_ap)
register_evaluator("cityscapes_sem_seg", Task.SEMANTIC, cityscapes_iou)
register_evaluator("cityscapes_panoptic_seg", Task.PANOPTIC, panoptic_quality)
register_evaluator("cityscapes_panoptic_seg", Task.INSTANCE, cityscapes_ap)
register_evaluator("cityscapes_panoptic_seg", Task.SEMANTIC, cityscapes_iou)
for _type in ("coco_panoptic_seg", "ade20k_panoptic_seg", "mapillary_vistas_panoptic_seg"):
    register_evaluator(_type, Task.PANOPTIC, panoptic_quality)
    register_evaluator(_type, Task.INSTANCE, instance_ap)
    register_evaluator(_type, Task.SEMANTIC, semantic_iou)


def _check_count(cfg: CfgNode, dataset_name: str) -> None:
    """Check the number of classes, which maps of the best class do not show, unlike scores of all classes."""
    classes, count = MetadataCatalog.get(dataset_name).get("stuff_classes"), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if classes is not None and len(classes) != count:
        raise ValueError(
            f"dataset {dataset_name!r} has {len(classes)} classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {count}"
        )


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Build the evaluator of a registered dataset; several are combined into one.

    Args:
        cfg: config with the keys of `add_maskformer2_config`.
        dataset_name: registered dataset with `evaluator_type` in its metadata.
        output_folder: where results are written. None: `inference` in cfg.OUTPUT_DIR, with a directory per
            dataset when DATASETS.TEST names several; nothing is written when OUTPUT_DIR is empty.

    Raises:
        ValueError: the dataset has no evaluator_type, an unknown one, or one that evaluates none of the enabled tasks;
            or its number of classes is not that of the model, where no evaluator would notice it.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    known = ", ".join(sorted(_FACTORIES))
    if evaluator_type not in _FACTORIES:
        problem = (
            "no evaluator_type in its metadata" if evaluator_type is None else f"evaluator_type {evaluator_type!r}"
        )
        raise ValueError(f"dataset {dataset_name!r} has {problem}; known types: {known}")
    factories = _FACTORIES[evaluator_type]
    tasks = tasks_of(cfg)
    selected = [factories[task] for task in IMAGE_TASKS if task in factories and task in tasks]
    if not selected:
        needed = " or ".join(f"MODEL.MASK_FORMER.TEST.{task.switch}" for task in factories)
        raise ValueError(
            f"dataset {dataset_name!r} (evaluator_type {evaluator_type!r}) has no evaluator for the enabled tasks; "
            f"set {needed} True"
        )
    if output_folder is None and cfg.OUTPUT_DIR:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            output_folder = os.path.join(output_folder, dataset_name)
    if Task.SEMANTIC in tasks and Task.SEMANTIC in factories and not _option(cfg.TEST, "SEMANTIC_SCORES", True):
        _check_count(cfg, dataset_name)
    request = EvaluatorRequest(cfg, dataset_name, output_folder)
    evaluators = [factory(request) for factory in selected]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
