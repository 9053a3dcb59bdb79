"""What a training is about to do, in a few lines for the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..config import micro_batch_size
from .optimizer import base_learning_rate


class Training(Protocol):
    """What the summary reads of a `Trainer`."""

    cfg: CfgNode
    model: nn.Module
    data_loader: Any
    start_iter: int
    max_iter: int


def dataset_size(loader: Any) -> int:
    """Return the number of images of a loader's dataset, 0 where a loader of another kind does not tell."""
    dataset: Any = getattr(loader, "dataset", None)
    try:
        return len(dataset)
    except TypeError:  # also of detectron2's iterable datasets, which have a length only for some samplers
        return 0


def training_summary(training: Training, test_images: Mapping[str, int]) -> str:
    """Return model, datasets, devices, batch, iterations and output directory, one a line.

    Args:
        training: with its model and loader.
        test_images: number of images of each dataset of DATASETS.TEST, where it is known.
    """
    cfg, images, batch = training.cfg, dataset_size(training.data_loader), training.cfg.SOLVER.IMS_PER_BATCH
    rows = [
        ("model", _model(cfg, training.model)),
        ("train", f"{', '.join(cfg.DATASETS.TRAIN) or '(own loader)'}{_count(images)}"),
        ("test", ", ".join(f"{name}{_count(test_images.get(name, 0))}" for name in cfg.DATASETS.TEST) or "none"),
        ("device", _devices(cfg)),
        ("batch", _batch(cfg)),
        ("lr", _learning_rate(cfg)),
        ("iterations", _iterations(training, batch / images if images else 0.0)),
        ("output", f"{cfg.OUTPUT_DIR} (log.txt has config and model in full)"),
    ]
    return "Training:\n" + "\n".join(f"  {name:<11}{text}" for name, text in rows)


def _count(images: int) -> str:
    return f" ({images:,} images)" if images else ""


def _model(cfg: CfgNode, model: nn.Module) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    backbone = cfg.MODEL.TIMM.NAME if cfg.MODEL.BACKBONE.NAME == "TimmBackbone" else cfg.MODEL.BACKBONE.NAME
    frozen = "" if trained == total else f", {trained / 1e6:.1f} M of them trained"
    return f"{cfg.MODEL.META_ARCHITECTURE} with {backbone}, {total / 1e6:.1f} M parameters{frozen}"


def _devices(cfg: CfgNode) -> str:
    ranks = comm.get_world_size()
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return f"{cfg.MODEL.DEVICE}, {torch.get_num_threads()} threads" + (f", {ranks} ranks" if ranks > 1 else "")
    return f"{ranks} x {torch.cuda.get_device_name()}"


def _batch(cfg: CfgNode) -> str:
    ranks = comm.get_world_size()
    at_once = micro_batch_size(cfg, ranks)
    text = f"{cfg.SOLVER.IMS_PER_BATCH} images"
    if at_once == cfg.SOLVER.IMS_PER_BATCH:
        return text
    return f"{text}: {ranks} ranks x {cfg.SOLVER.ACCUMULATION_STEPS} accumulation steps x {at_once}"


def _learning_rate(cfg: CfgNode) -> str:
    rate, factor = base_learning_rate(cfg), cfg.SOLVER.BACKBONE_MULTIPLIER
    text = f"{rate:.3g}" + ("" if factor == 1 else f", {rate * factor:.3g} in the backbone")
    if not cfg.SOLVER.REFERENCE_BATCH:
        return text
    return f"{text}: {cfg.SOLVER.BASE_LR:g} for {cfg.SOLVER.REFERENCE_BATCH} images (SOLVER.REFERENCE_BATCH)"


def _iterations(training: Training, epochs_of_one: float) -> str:
    parts = [f"{training.max_iter:,}"]
    if training.start_iter:
        parts[0] += f", {training.start_iter:,} of them done"
    if epochs_of_one:
        parts.append(f"{training.max_iter * epochs_of_one:.3g} epochs")
    parts.append(f"warm-up {training.cfg.SOLVER.WARMUP_ITERS:,}")
    if training.cfg.TEST.EVAL_PERIOD > 0:
        parts.append(f"evaluation every {training.cfg.TEST.EVAL_PERIOD:,}")
    return ", ".join(parts)
