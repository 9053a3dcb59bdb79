"""Whether a training runs compiled code (MODEL.COMPILE)."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from ..modeling.runtime import Runtime

logger = logging.getLogger(__name__)

_LONG = 5_000  # iterations: compiling takes as long as some hundred of them save


def compile_if_worthwhile(cfg: CfgNode, model: nn.Module) -> None:
    """Let a model compile its training, with MODEL.COMPILE auto if that will pay: on CUDA, and as `pays` says."""
    runtime = getattr(model, "runtime", None)
    if not isinstance(runtime, Runtime) or runtime.mode != "auto":
        return
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and pays(cfg):
        runtime.compile_training = True


def pays(cfg: CfgNode) -> bool:
    """Return whether a training is long, and its images have one size, or mostly so, for which code is compiled."""
    if cfg.SOLVER.MAX_ITER < _LONG:
        return False
    crops = cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute"
    return crops or cfg.INPUT.DATASET_MAPPER_NAME.endswith("_lsj")
