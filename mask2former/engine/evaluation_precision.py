"""Precision in which an evaluation runs the model (TEST.AMP)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..utils.device import amp_dtype
from .train_step import Precision


class InPrecision(nn.Module):
    """Runs a model under autocast, and nothing else: what takes its outputs, such as an evaluator, is outside.

    Args:
        model: takes and returns anything; it keeps its mode (training or evaluation).
        precision: device and format.
    """

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self.training = model.training

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return what the model returns."""
        with self.precision.autocast():
            return self.model(*inputs, **options)


def evaluation_precision(cfg: CfgNode) -> Precision:
    """Return the precision that TEST.AMP selects for MODEL.DEVICE, with the meaning that `Segmenter`'s `amp` has.

    SOLVER.AMP, the precision of training, has no effect: configs of the reference set it, and the reference evaluates
    in fp32.

    Raises:
        ValueError: unknown TEST.AMP.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    return Precision(device.type, amp_dtype(cfg.TEST.AMP, device))


def in_precision(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return the model in the precision of TEST.AMP; the model itself with "off".

    Raises:
        ValueError: unknown TEST.AMP.
    """
    precision = evaluation_precision(cfg)
    return model if precision.dtype is None else InPrecision(model, precision)


def describe_run(cfg: CfgNode) -> str:
    """Return how an evaluation runs, such as "bfloat16, MODEL.COMPILE graph"; the mode is the requested one."""
    dtype = evaluation_precision(cfg).dtype
    return f"{'fp32' if dtype is None else str(dtype).removeprefix('torch.')}, MODEL.COMPILE {cfg.MODEL.COMPILE}"
