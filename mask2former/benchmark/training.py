"""`train`: forward and backward pass, a complete step with optimizer, and steps in a row, as the trainer takes them."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.batch_transport import PackedBatch, with_bits
from ..engine.compilation import compile_if_worthwhile
from ..engine.optimizer import build_optimizer, full_model_clip_norm
from ..engine.train_step import Precision, TrainStep
from ..utils.parallel import use_one_thread
from . import huggingface
from .floor import Peaks, cost
from .measure import StepsInARow, Work
from .report import Report
from .sides import measure_sides
from .synthetic import batch_of, build, config_of, eager, settings, title

GRADIENTS, STEP, STEPS = "forward, losses, backward", "training step", "training steps in a row"
LOG_PERIOD = 20  # iterations, as in `Trainer`; in each of them the losses are fetched once


def run(args: argparse.Namespace, config: str) -> Report:
    """Measure a training step on random samples.

    Args:
        args: `device`, `size`, `batch`, `objects`, `uneven`, `bf16`, `compile`, `compare`, `repeats`, `opts`.
        config: config file.

    Raises:
        ValueError: a video model, or an option that this version or machine lacks.
    """
    cfg = config_of(args, config)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda":
        use_one_thread()  # as trainings do; the report counts threads
    report = Report("train", title(args, config, cfg), settings(args, config, cfg, "objects"), device)
    report.peaks = Peaks.of(device, args.bf16)
    counted = cost(_works(args, eager(cfg))[GRADIENTS])
    sides = [lambda: _works(args, cfg)]
    if args.compare is not None:
        sides.append(lambda: huggingface.training(args, cfg))
    costs = dict.fromkeys((GRADIENTS, STEP, STEPS), counted)
    report.rows = measure_sides(sides, args.repeats, device, images=args.batch, costs=costs, peaks=report.peaks)
    return report


def _works(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Work]:
    model = build_for_training(cfg)
    batch = batch_of(args, cfg)
    precision, loaded = _precision(args, cfg), as_loaded(model, batch)

    def gradients() -> None:
        with precision.autocast():
            total: Any = sum(model(loaded).values())
        model.zero_grad(set_to_none=True)
        total.backward()

    step = training_step(args, cfg, model, batch)
    return {GRADIENTS: gradients, STEP: step, STEPS: StepsInARow(step)}


def build_for_training(cfg: CfgNode) -> nn.Module:
    """Build a model that compiles its training where `Trainer` lets it."""
    model = build(cfg, train=True)
    compile_if_worthwhile(cfg, model)
    return model


def as_loaded(model: nn.Module, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return samples for a model that reads bits of masks as `Trainer` gives them: bits, in pinned memory."""
    if not getattr(model, "reads_mask_bits", False):
        return batch
    packed = PackedBatch.of(with_bits(batch), for_model=True)
    return list(packed.pin_memory() if torch.cuda.is_available() else packed)


def _precision(args: argparse.Namespace, cfg: CfgNode) -> Precision:
    return Precision(torch.device(cfg.MODEL.DEVICE).type, torch.bfloat16 if args.bf16 else None)


def training_step(args: argparse.Namespace, cfg: CfgNode, model: nn.Module, batch: list[dict[str, Any]]) -> Work:
    """Return a function that takes one optimizer step on `batch`, with clipping and log, as `Trainer` does.

    Args:
        args: `bf16`.
        cfg: SOLVER says which optimizer.
        model: in training mode; may be in DistributedDataParallel.
        batch: the samples of this rank.
    """
    plain: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    batch = as_loaded(plain, batch)
    optimizer = build_optimizer(cfg, plain)
    step = TrainStep(
        precision=_precision(args, cfg),
        max_iter=2**31,
        clip_norm=full_model_clip_norm(cfg),
        norm_type=cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE,
        max_bad_steps=2**31,  # random weights may not converge
        log_period=LOG_PERIOD,
    )
    numbers, batches = itertools.count(), itertools.repeat(batch)
    storage = EventStorage()

    def work() -> None:
        with storage:
            step.run(model, optimizer, batches, next(numbers))

    return work
