"""`infer`: the network, the network with all results on the host, and `Segmenter` from array to result."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..segmenter import Segmenter
from ..structures.classes import ClassTable
from . import huggingface
from .floor import Peaks, cost
from .measure import Work, wait
from .report import Report
from .sides import measure_sides
from .synthetic import arrays_of, batch_of, build, config_of, eager, settings, title

NETWORK, RESULTS, SEGMENTER = "network", "network and results", "Segmenter"


def run(args: argparse.Namespace, config: str) -> Report:
    """Measure inference.

    Args:
        args: `device`, `size`, `source`, `batch`, `bf16`, `dense`, `compile`, `compare`, `repeats`, `opts`.
        config: config file.

    Raises:
        ValueError: a video model, or an option that this version or machine lacks.
    """
    cfg = config_of(args, config)
    device = torch.device(cfg.MODEL.DEVICE)
    report = Report("infer", title(args, config, cfg), settings(args, config, cfg), device)
    report.peaks = Peaks.of(device, args.bf16)
    with _quiet():
        works = _works(args, eager(cfg), counted=True)
        costs = {name: cost(works[name]) for name in (NETWORK, RESULTS)}
        costs[SEGMENTER] = costs[RESULTS]
        del works
        sides = [lambda: _works(args, cfg)]
        if args.compare is not None:
            sides.append(lambda: huggingface.inference(args, cfg))
        report.rows = measure_sides(sides, args.repeats, device, images=args.batch, costs=costs, peaks=report.peaks)
    return report


def _works(args: argparse.Namespace, cfg: CfgNode, counted: bool = False) -> dict[str, Work]:
    """Return what is timed, by name; `counted`: not timed, but to be given to `cost`."""
    model: Any = build(cfg, dense=args.dense)
    if counted:
        model.requires_grad_(False)  # FlopCounterMode asks for the gradients of what has any
    device = torch.device(cfg.MODEL.DEVICE)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    batch = batch_of(args, cfg)
    for sample in batch:
        sample["height"], sample["width"] = args.source or args.size
    arrays = arrays_of(args)
    segment = segmenter_of(args, cfg, model)

    def network() -> None:
        with torch.inference_mode(), autocast:
            model.runtime(model.backbone, model.sem_seg_head, model.preprocess(batch).tensor)

    def results() -> None:
        with torch.inference_mode(), autocast:
            on_host = [to_host(output) for output in model(batch)]
        wait(device)
        del on_host

    return {NETWORK: network, RESULTS: results, SEGMENTER: lambda: segment(arrays, tile="off")}


def segmenter_of(args: argparse.Namespace, cfg: CfgNode, model: nn.Module) -> Segmenter:
    """Wrap a model for images in batches of `args.batch`, in bf16 with `args.bf16`."""
    amp = "bfloat16" if args.bf16 else False
    classes = ClassTable.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    device = torch.device(cfg.MODEL.DEVICE)
    return Segmenter(model, cfg, classes=classes, device=device, batch_size=args.batch, amp=amp)


def to_host(value: Any) -> Any:
    """Start the copy of all tensors of a result to the host; the caller waits for the device."""
    if isinstance(value, Tensor):
        if value.device.type != "cuda":
            return value.cpu()
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, Instances):
        return {name: to_host(entry) for name, entry in value.get_fields().items()}
    if isinstance(value, Boxes):
        return to_host(value.tensor)
    if isinstance(value, dict):
        return {key: to_host(entry) for key, entry in value.items()}
    return [to_host(entry) for entry in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about the results, which are those of random weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
