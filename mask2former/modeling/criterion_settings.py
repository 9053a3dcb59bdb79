"""What a training compares, as a config says it: criterion, matcher, weights of losses, denoising queries."""

from __future__ import annotations

from typing import Any

from .criterion import SetCriterion, selection_name
from .denoising import Denoising
from .matcher import HungarianMatcher


def denoising_settings(cfg: Any) -> Denoising | None:
    """Read MODEL.MASK_FORMER.DENOISING; None without denoising queries."""
    node = cfg.MODEL.MASK_FORMER.DENOISING
    return Denoising(node.QUERIES, node.LABEL_NOISE, node.MASK_NOISE, node.MASK_LAYERS) if node.QUERIES else None


def build_criterion(cfg: Any, num_classes: int, cls: type[SetCriterion] = SetCriterion) -> SetCriterion:
    """Build a criterion with its matcher and the weights of all supervised predictions, from MODEL.MASK_FORMER."""
    node = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(
        cost_class=node.CLASS_WEIGHT,
        cost_mask=node.MASK_WEIGHT,
        cost_dice=node.DICE_WEIGHT,
        num_points=node.TRAIN_NUM_POINTS,
        max_nonfinite=cfg.SOLVER.MAX_NONFINITE_STEPS,
        object_points=node.SMALL_OBJECT_POINTS,
    )
    terms = {"loss_ce": node.CLASS_WEIGHT, "loss_mask": node.MASK_WEIGHT, "loss_dice": node.DICE_WEIGHT}
    earlier = range(node.DEC_LAYERS - 1 if node.DEEP_SUPERVISION else 0)
    weights = terms | {f"{name}_{i}": weight for i in earlier for name, weight in terms.items()}
    if node.DENOISING.QUERIES:
        factor = node.DENOISING.LOSS_WEIGHT
        own = {name.replace("loss_", "loss_denoising_"): weight * factor for name, weight in weights.items()}
        weights |= {name: weight for name, weight in own.items() if not name.endswith("_0")}
    if node.MASK_QUALITY.ENABLED:
        names = ["loss_quality", *(f"loss_quality_{i}" for i in earlier)]
        weights |= dict.fromkeys(names, node.MASK_QUALITY.LOSS_WEIGHT)
        terms["loss_quality"] = node.MASK_QUALITY.LOSS_WEIGHT
    if node.QUERY_SELECTION:
        weights |= {selection_name(name): weight for name, weight in terms.items()}
    # Left out where they are off: constructors of other projects take what the reference implementation has.
    options = {"object_points": node.SMALL_OBJECT_POINTS} if node.SMALL_OBJECT_POINTS else {}
    return cls(
        num_classes,
        matcher,
        weights,
        eos_coef=node.NO_OBJECT_WEIGHT,
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
        deep_supervision=node.DEEP_SUPERVISION,
        **options,
    )
