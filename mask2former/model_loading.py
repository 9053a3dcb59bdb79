"""Models with their config and classes, built from names or files and filled with weights, ready for inference."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from .checkpoint import load_into
from .config import load_config
from .config_validation import validate_config
from .data import register_from_config
from .maskformer_model import MaskFormer
from .model_source import dataset_classes, locate_model, stored_classes
from .structures.classes import ClassTable
from .structures.task import IMAGE_TASKS, Task, tasks_of

logger = logging.getLogger(__name__)


def load_model(
    name: str | None,
    config: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    device: torch.device,
    overrides: Sequence[str] = (),
    task: str = "auto",
    classes: ClassTable | Sequence[str] | None = None,
) -> tuple[nn.Module, CfgNode, ClassTable]:
    """Return a model in evaluation mode on `device`, its config and its classes.

    The arguments are those of `Segmenter.load`, and so are the errors.
    """
    if name is not None and config is not None:
        raise ValueError(f"give a model name ({name!r}) or a config ({str(config)!r}), not both")
    overrides = [str(item) for item in overrides]
    if weights is None:
        weights = dict(zip(overrides[::2], overrides[1::2])).get("MODEL.WEIGHTS")
    config, weights = locate_model(name, config, weights)
    cfg = load_config(config, overrides)
    if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer" and task not in ("auto", Task.VIDEO):
        raise ValueError(f"{config} is a video model: its task is video, not {task}")
    if not weights:
        raise ValueError(
            f"no weights for {config}: without them results would be random. Pass weights=FILE "
            "(demo: --weights FILE, or --opts MODEL.WEIGHTS FILE)."
        )
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.WEIGHTS = str(weights)
    _turn_on(cfg, task)
    if classes is None:
        classes = stored_classes(Path(config), Path(str(weights)))
    if classes is None:
        _register_custom_datasets(cfg)
    table = class_table(cfg, classes)
    model = _build(cfg, table)
    load_into(model, weights).require_all(cfg.MODEL.ALLOW_PARTIAL_WEIGHTS)
    return model.eval(), cfg, table


def ready_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model if it is on the device in evaluation mode, else a copy that is; it shares weights there."""
    tensors = [*model.parameters(), *model.buffers()]
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    there = [t for t in tensors if t.device.type == device.type and t.device.index in (None, device.index)]
    if len(there) == len(tensors) and not any(part.training for part in model.modules()):
        return model
    try:
        # deepcopy takes over what its memo holds.
        return copy.deepcopy(model, {id(t): t for t in there}).to(device).eval()
    except (RuntimeError, TypeError) as error:  # of tensors inside a graph, locks, process groups
        raise ValueError(
            f"this {type(model).__name__} cannot be copied ({error}). Call model.to({str(device)!r}).eval() first: "
            "a model that is on the device and in evaluation mode is used as it is."
        ) from error


def class_table(cfg: CfgNode | None, classes: ClassTable | Sequence[str] | None) -> ClassTable:
    """Return the given classes, or those of the config's datasets, or numbered ones."""
    if classes is not None:
        table = classes if isinstance(classes, ClassTable) else ClassTable(tuple(classes))
        if cfg is not None and len(table) != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            raise ValueError(
                f"{len(table)} class names for a model with MODEL.SEM_SEG_HEAD.NUM_CLASSES = "
                f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}"
            )
        return table
    if cfg is None:
        raise ValueError("a model without config needs classes=[...], the names of its classes")
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    known = dataset_classes(cfg)
    if known is not None:
        return known
    logger.warning("the names of the %d classes are unknown and replaced by numbers; pass classes=[...]", count)
    return ClassTable.numbered(count)


def _turn_on(cfg: CfgNode, task: str) -> None:
    """Make the model compute only the requested task, as far as that does not change its results."""
    if task not in IMAGE_TASKS:
        return
    enabled = {Task(task)}
    if task == Task.INSTANCE:  # with PANOPTIC_ON the instances are things only
        enabled |= tasks_of(cfg) & {Task.PANOPTIC}
    for each in IMAGE_TASKS:
        cfg.MODEL.MASK_FORMER.TEST[each.switch] = each in enabled


def _register_custom_datasets(cfg: CfgNode) -> None:
    """Register the custom datasets of the config, for their class names, if their files are on this machine."""
    try:
        register_from_config(cfg)
    except (OSError, ValueError) as error:
        logger.info("class names are not taken from the datasets of the config: %s", error)


def _build(cfg: CfgNode, table: ClassTable) -> nn.Module:
    """Build the model. Inference needs no dataset; which classes are things comes from its metadata or the table."""
    cfg.DATASETS.TEST = ()
    known = any(name in MetadataCatalog for name in cfg.DATASETS.TRAIN[:1])
    if not known:
        cfg.DATASETS.TRAIN = ()
    validate_config(cfg, training=False)
    model = build_model(cfg)
    if isinstance(model, MaskFormer) and not known:
        model.things = frozenset(k for k, thing in enumerate(table.is_thing) if thing)
    return model
