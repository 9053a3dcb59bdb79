"""Optimizer, gradient clipping and learning-rate schedules from the config (arXiv 2112.01527, sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")


def scaled_learning_rate(rate: float, batch: int, reference: int, optimizer: str = "ADAMW") -> float:
    """Return the learning rate for another batch: that of AdamW grows with its square root, that of SGD with its size.

    The noise of a gradient falls with the root of the number of images, and AdamW divides by its size (arXiv
    2205.10287).

    Args:
        rate: that is right for `reference` images.
        batch: images in an optimizer step, over all ranks and micro-batches.
    """
    ratio = batch / reference
    return rate * (ratio if optimizer.upper() == "SGD" else math.sqrt(ratio))


def base_learning_rate(cfg: CfgNode) -> float:
    """Return SOLVER.BASE_LR, scaled from SOLVER.REFERENCE_BATCH to SOLVER.IMS_PER_BATCH if that is above 0."""
    solver = cfg.SOLVER
    if not solver.REFERENCE_BATCH:
        return float(solver.BASE_LR)
    return scaled_learning_rate(solver.BASE_LR, solver.IMS_PER_BATCH, solver.REFERENCE_BATCH, solver.OPTIMIZER)


def parameter_settings(cfg: CfgNode, module_name: str, module: nn.Module, name: str) -> tuple[float, float]:
    """Return learning rate and weight decay of the parameter `name` of `module`, which is at path `module_name`.

    Later rules take precedence: position tables are not decayed, then norm layers take WEIGHT_DECAY_NORM and
    `nn.Embedding` WEIGHT_DECAY_EMBED. A bare `nn.Parameter` such as the encoder's `level_embed` is decayed
    like any weight, and so are biases unless SOLVER.WEIGHT_DECAY_BIAS is set.
    """
    solver = cfg.SOLVER
    lr, weight_decay = base_learning_rate(cfg), solver.WEIGHT_DECAY
    if "backbone" in module_name:
        lr *= solver.BACKBONE_MULTIPLIER
    if any(table in name for table in _POSITION_TABLES):
        weight_decay = 0.0
    if isinstance(module, NORM_LAYERS):
        weight_decay = solver.WEIGHT_DECAY_NORM
    if isinstance(module, nn.Embedding):
        weight_decay = solver.WEIGHT_DECAY_EMBED
    if name == "bias":
        lr *= solver.BIAS_LR_FACTOR
        if solver.WEIGHT_DECAY_BIAS is not None:
            weight_decay = solver.WEIGHT_DECAY_BIAS
    return lr, weight_decay


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Group the trainable parameters, one group for each distinct (learning rate, weight decay).

    Returns:
        Groups with "params" as (name, parameter) pairs, so that checkpoints also hold the names.
    """
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            full_name = f"{module_name}.{name}" if module_name else name
            settings = parameter_settings(cfg, module_name, module, name)
            groups.setdefault(settings, []).append((full_name, parameter))
    return [{"params": pairs, "lr": lr, "weight_decay": decay} for (lr, decay), pairs in groups.items()]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD (SOLVER.OPTIMIZER) with the rules of `parameter_settings`, in fused form.

    The fused form can skip a step by a flag on the device (`optimizer.found_inf`), which `TrainStep` uses to
    skip steps with non-finite gradients without waiting for the GPU. Full-model clipping is also applied there;
    clipping of single parameters (SOLVER.CLIP_GRADIENTS.CLIP_TYPE "value" or "norm") is built into the optimizer.

    Raises:
        ValueError: unknown SOLVER.OPTIMIZER or CLIP_TYPE, or a model without trainable parameters.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(cfg, model)
    if not groups:
        raise ValueError(
            "The model has no trainable parameter; check MODEL.BACKBONE.FREEZE_AT and which parameters you froze."
        )
    name = solver.OPTIMIZER.upper()
    optimizer: torch.optim.Optimizer
    if name == "ADAMW":
        optimizer = torch.optim.AdamW(groups, lr=base_learning_rate(cfg), weight_decay=solver.WEIGHT_DECAY, fused=True)
    elif name == "SGD":
        optimizer = torch.optim.SGD(
            groups,
            lr=base_learning_rate(cfg),
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
            fused=True,
        )
        _start_momentum(optimizer)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is '{solver.OPTIMIZER}', which does not exist. Use ADAMW or SGD.")
    clip = solver.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE == "full_model":
        return optimizer
    if clip.CLIP_TYPE not in ("value", "norm"):
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is '{clip.CLIP_TYPE}', which does not exist. "
            "Use full_model (one norm over all parameters), norm or value (per parameter)."
        )
    return maybe_add_gradient_clipping(cfg, optimizer)


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set zero momentum: the first step is the same, and skipping it leaves no uninitialized buffer."""
    for group in optimizer.param_groups:
        if group["momentum"] != 0:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def full_model_clip_norm(cfg: CfgNode) -> float | None:
    """Return the maximum norm of all gradients together, or None when full-model clipping is off."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != "full_model" or clip.CLIP_VALUE <= 0:
        return None
    return float(clip.CLIP_VALUE)


def clip_gradients(parameters: Sequence[Tensor], max_norm: float | None, norm_type: float = 2.0) -> Tensor:
    """Scale all gradients in place so that their total norm is at most `max_norm`; with None only compute it.

    Returns:
        The norm before clipping, a scalar on the gradients' device. Nothing here waits for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, norm_type)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule SOLVER.LR_SCHEDULER_NAME: WarmupPolyLR or one of detectron2 (WarmupMultiStepLR, ...).

    Raises:
        ValueError: unknown name.
    """
    try:
        return build_deeplab_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME '{cfg.SOLVER.LR_SCHEDULER_NAME}': {error}. "
            "Use WarmupPolyLR, WarmupMultiStepLR or WarmupCosineLR."
        ) from error
