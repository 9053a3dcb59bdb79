"""Which values each config key takes: one table, read before anything is built.

Types are those of the defaults. What depends on two keys is in `config_validation.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode

from .config import leaves, load_config
from .data.build import SAMPLERS
from .data.dataset_mappers.clip_augmentation import EXTRA_AUGMENTATIONS
from .errors import ConfigError
from .modeling.runtime import MODES
from .objects import COMPONENTS
from .utils.device import AMP_DTYPES, AMP_MODES
from .utils.hints import did_you_mean

Rule = Callable[[Any], str | None]
"""Returns what a value must be ("must be ..."), or None where it is right."""

_STAGES = ("res2", "res3", "res4", "res5")
LOGGERS = ("tensorboard", "wandb", "mlflow", "clearml")

# Larger values are typing errors, which would end in an error of memory somewhere else.
_CHANNELS, _LAYERS, _PIXELS, _COUNT = 65_536, 1_000, 100_000, 2**31 - 1


def integer(low: int, high: int = _COUNT) -> Rule:
    """Take integers of `low` to `high`."""
    limits = f"of at least {low}" if high == _COUNT else f"from {low} to {high}"

    def problem(value: Any) -> str | None:
        valid = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if valid else f"must be an integer {limits}"

    return problem


def number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False, infinite: bool = False
) -> Rule:
    """Take numbers between two limits, without the lower one (`above`), without the upper one (`below`)."""
    limits = f"{'above' if above else 'of at least'} {low:g}"
    if high != math.inf:
        limits += f" and {'below' if below else 'at most'} {high:g}"

    def problem(value: Any) -> str | None:
        valid = isinstance(value, int | float) and not isinstance(value, bool)
        valid = valid and (math.isfinite(value) or infinite)
        valid = valid and (low < value if above else low <= value) and (value < high if below else value <= high)
        return None if valid else f"must be a number {limits}"

    return problem


def one_of(*names: object) -> Rule:
    """Take one of these values."""

    def problem(value: Any) -> str | None:
        hint = did_you_mean(value, map(str, names)) if isinstance(value, str) else ""
        valid = any(value == name and type(value) is type(name) for name in names)
        return None if valid else f"must be one of {', '.join(map(repr, names))}.{hint}"

    return problem


def items(rule: Rule, least: int = 1, count: int | None = None) -> Rule:
    """Take lists whose entries follow a rule; at least so many, or exactly `count`."""
    size = f"exactly {count}" if count is not None else f"at least {least}"

    def problem(value: Any) -> str | None:
        if not isinstance(value, list | tuple) or len(value) < least or count not in (None, len(value)):
            return f"must be a list of {size} {'entry' if (count or least) == 1 else 'entries'}"
        wrong = next((text for text in map(rule, value) if text), None)
        return f"must have entries of which each {wrong}" if wrong else None

    return problem


def optional(rule: Rule) -> Rule:
    """Take None, and what `rule` takes."""
    return lambda value: None if value is None else rule(value)


def text(value: Any) -> str | None:
    """Take strings that are not empty."""
    return None if isinstance(value, str) and value and "\0" not in value else "must be a name, not empty"


def device(value: Any) -> str | None:
    """Take what PyTorch knows as a device and can compute on."""
    try:
        kind = torch.device(value).type if isinstance(value, str) else ""
    except RuntimeError:
        kind = ""
    usable = kind in ("cpu", "cuda", "mps") or hasattr(getattr(torch, kind or " ", None), "is_available")
    return None if usable else "must be 'cpu', 'cuda', 'cuda:1' (the second GPU) or 'mps'"


def _expected_result(value: Any) -> str | None:
    rules = (text, text, number(-math.inf), number(0))
    valid = isinstance(value, list | tuple) and len(value) == len(rules)
    valid = valid and not any(rule(entry) for rule, entry in zip(rules, value, strict=True))
    return None if valid else "must be [task, metric, value, tolerance]"


_fraction, _positive, _rate = number(0, 1), number(0, above=True), number(0, 1, below=True)
_weight, _channels, _layers = number(0, 1e6), integer(1, _CHANNELS), integer(0, _LAYERS)
_features, _pixels, _names = items(text), integer(1, _PIXELS), items(text, least=0)
_shortest_edge = integer(0, _PIXELS)  # 0: images keep their size

MODEL_RULES: dict[str, Rule] = {
    "MODEL.DEVICE": device,
    "MODEL.COMPILE": one_of(*MODES),
    "MODEL.PIXEL_MEAN": items(number(-1e6, 1e6), count=3),
    "MODEL.PIXEL_STD": items(number(0, 1e6, above=True), count=3),
    "MODEL.BACKBONE.FREEZE_AT": integer(-1, 5),
    "MODEL.RESNETS.DEPTH": integer(18, 152),
    "MODEL.RESNETS.OUT_FEATURES": items(one_of("stem", *_STAGES)),
    "MODEL.RESNETS.NUM_GROUPS": _channels,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _channels,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _channels,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _channels,
    "MODEL.RESNETS.NORM": one_of("", "FrozenBN", "BN", "SyncBN", "GN", "nnSyncBN", "naiveSyncBN", "LN"),
    "MODEL.RESNETS.STEM_TYPE": one_of("basic", "deeplab"),
    "MODEL.RESNETS.RES4_DILATION": integer(1, 2),
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2, 4),
    "MODEL.RESNETS.RES5_MULTI_GRID": items(integer(1, 64), count=3),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": _channels,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": items(one_of(False, True), count=4),
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": _pixels,
    "MODEL.SWIN.PATCH_SIZE": integer(1, 64),
    "MODEL.SWIN.EMBED_DIM": _channels,
    "MODEL.SWIN.DEPTHS": items(integer(1, _LAYERS)),
    "MODEL.SWIN.NUM_HEADS": items(_channels),
    "MODEL.SWIN.WINDOW_SIZE": integer(1, 256),
    "MODEL.SWIN.MLP_RATIO": number(0, 100, above=True),
    "MODEL.SWIN.QK_SCALE": optional(number(0, 1000, above=True)),
    "MODEL.SWIN.DROP_RATE": _rate,
    "MODEL.SWIN.ATTN_DROP_RATE": _rate,
    "MODEL.SWIN.DROP_PATH_RATE": _rate,
    "MODEL.SWIN.OUT_FEATURES": items(one_of(*_STAGES)),
    "MODEL.TIMM.NAME": text,
    "MODEL.TIMM.OUT_FEATURES": items(one_of("res1", *_STAGES)),
    "MODEL.TIMM.DROP_PATH_RATE": _rate,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": _features,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": integer(0, 65_535),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": integer(1, 1_000_000),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": _channels,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": _channels,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": integer(1, 64),
    "MODEL.SEM_SEG_HEAD.NORM": one_of("", "GN", "BN", "SyncBN", "FrozenBN", "nnSyncBN", "naiveSyncBN", "LN"),
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": _weight,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": _layers,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": _features,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": integer(1, 256),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": _channels,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": _channels,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": _weight,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": _weight,
    "MODEL.MASK_FORMER.DICE_WEIGHT": _weight,
    "MODEL.MASK_FORMER.MASK_WEIGHT": _weight,
    "MODEL.MASK_FORMER.NHEADS": _channels,
    "MODEL.MASK_FORMER.DROPOUT": _rate,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": _channels,
    "MODEL.MASK_FORMER.ENC_LAYERS": _layers,
    "MODEL.MASK_FORMER.DEC_LAYERS": integer(1, _LAYERS),  # counts the initial prediction too
    "MODEL.MASK_FORMER.HIDDEN_DIM": _channels,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": integer(1, 100_000),
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": integer(-1, _PIXELS),  # -1: the backbone's
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": integer(1, 100_000_000),
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": number(1, 1000),
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": _fraction,
    "MODEL.MASK_FORMER.QUERY_GROUPS": integer(1, 1000),
    "MODEL.MASK_FORMER.SMALL_OBJECT_POINTS": _fraction,
    "MODEL.MASK_FORMER.MASK_QUALITY.LOSS_WEIGHT": _weight,
    "MODEL.MASK_FORMER.MASK_QUALITY.POWER": number(0, 100),
    "MODEL.MASK_FORMER.DENOISING.QUERIES": integer(0, 100_000),
    "MODEL.MASK_FORMER.DENOISING.LABEL_NOISE": _fraction,
    "MODEL.MASK_FORMER.DENOISING.MASK_NOISE": _fraction,
    "MODEL.MASK_FORMER.DENOISING.MASK_LAYERS": _layers,
    "MODEL.MASK_FORMER.DENOISING.LOSS_WEIGHT": _weight,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": _fraction,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": _fraction,
    "MODEL.MASK_FORMER.TEST.INSTANCES.SCORE_THRESHOLD": _fraction,
    "MODEL.MASK_FORMER.TEST.INSTANCES.NMS_IOU": _fraction,
    "MODEL.MASK_FORMER.TEST.INSTANCES.MAX_OVERLAP": _fraction,
    "MODEL.MASK_FORMER.TEST.INSTANCES.COMPONENTS": one_of(*COMPONENTS),
    "MODEL.MASK_FORMER.TEST.INSTANCES.MIN_AREA": integer(0),
    "MODEL.MASK_FORMER.TEST.TILES.SIZE": integer(0, _PIXELS),  # 0: tiles only on demand
    "MODEL.MASK_FORMER.TEST.TILES.OVERLAP": number(0, 0.9, below=True),
    "INPUT.FORMAT": one_of("RGB", "BGR"),
    "INPUT.MIN_SIZE_TEST": _shortest_edge,
    "INPUT.MAX_SIZE_TEST": _pixels,
    "TEST.AMP": one_of(*AMP_MODES),
    "TEST.DETECTIONS_PER_IMAGE": integer(1),
    "TEST.DETECTIONS_PER_VIDEO": integer(1),
    "TEST.SCORE_THRESHOLD": _fraction,
    "TEST.WINDOW_FRAMES": integer(0),  # 0: the complete clip at once
    "TEST.WINDOW_OVERLAP": integer(0),
    "TEST.INSTANCE_TASKS": items(one_of("segm", "bbox", "boundary")),
    "TEST.AUG.MIN_SIZES": items(_pixels),
    "TEST.AUG.MAX_SIZE": _pixels,
    "DATALOADER.NUM_WORKERS": integer(0, 4096),
    "DATASETS.TRAIN": _names,
    "DATASETS.TEST": _names,
    "OUTPUT_DIR": text,
    "SEED": integer(-(2**31)),  # negative: a random one
}
"""Rules of the keys that a model, an evaluation or a prediction reads."""

_CROPS = ("relative", "relative_range", "absolute", "absolute_range")

TRAINING_RULES: dict[str, Rule] = {
    "MODEL.CHECKPOINTING": items(one_of("backbone", "pixel_decoder", "transformer_decoder"), least=0),
    "INPUT.MIN_SIZE_TRAIN": items(_shortest_edge),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range", "choice_by_clip", "range_by_clip"),
    "INPUT.MAX_SIZE_TRAIN": _pixels,
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none", "flip_by_clip"),
    "INPUT.CROP.TYPE": one_of(*_CROPS, *(f"{kind}_by_clip" for kind in _CROPS)),
    "INPUT.CROP.SIZE": items(number(0, _PIXELS, above=True), count=2),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": _positive,
    "INPUT.SIZE_DIVISIBILITY": integer(-1, _PIXELS),  # 0 and -1: no padding
    "INPUT.IMAGE_SIZE": _pixels,
    "INPUT.MIN_SCALE": number(0, 1000, above=True),
    "INPUT.MAX_SCALE": number(0, 1000, above=True),
    "INPUT.EMPTY_PROB": _fraction,
    "INPUT.STAIN_AUG.PROB": _fraction,
    "INPUT.STAIN_AUG.STRENGTH": _fraction,
    "INPUT.STAIN_AUG.SWAP_PROB": _fraction,
    "INPUT.INTENSITY_AUG.GAMMA": number(1, 10),
    "INPUT.INTENSITY_AUG.BRIGHTNESS": number(1, 10),
    "INPUT.INTENSITY_AUG.INVERT_PROB": _fraction,
    "INPUT.INTENSITY_AUG.GRAY_PROB": _fraction,
    "INPUT.INTENSITY_AUG.BLUR": number(0, 100),
    "INPUT.INTENSITY_AUG.NOISE": _fraction,
    "INPUT.COPY_PASTE.PROB": _fraction,
    "INPUT.COPY_PASTE.OBJECTS": integer(1, 10_000),
    "INPUT.COPY_PASTE.SOURCE": one_of("other", "same"),
    "INPUT.COPY_PASTE.MIN_SCALE": number(0, 10, above=True),
    "INPUT.COPY_PASTE.MAX_SCALE": number(0, 10, above=True),
    "INPUT.SAMPLING_FRAME_NUM": integer(1, 10_000),
    "INPUT.SAMPLING_FRAME_RANGE": integer(0),
    "INPUT.AUGMENTATIONS": items(one_of(*EXTRA_AUGMENTATIONS), least=0),
    "DATALOADER.SAMPLER_TRAIN": one_of(*SAMPLERS),
    "DATALOADER.REPEAT_THRESHOLD": _fraction,
    "DATALOADER.RANDOM_SUBSET_RATIO": number(0, 1, above=True),
    "SOLVER.OPTIMIZER": lambda value: one_of("ADAMW", "SGD")(value.upper()),
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    ),
    "SOLVER.MAX_ITER": integer(1),
    "SOLVER.BASE_LR": number(0, 1000, above=True),
    "SOLVER.BASE_LR_END": number(0, 1000),
    "SOLVER.MOMENTUM": _rate,
    "SOLVER.WEIGHT_DECAY": number(0, 100),
    "SOLVER.WEIGHT_DECAY_NORM": number(0, 100),
    "SOLVER.WEIGHT_DECAY_EMBED": number(0, 100),
    "SOLVER.WEIGHT_DECAY_BIAS": optional(number(0, 100)),
    "SOLVER.BACKBONE_MULTIPLIER": number(0, 1000),
    "SOLVER.BIAS_LR_FACTOR": number(0, 1000),
    "SOLVER.GAMMA": number(0, 1),
    "SOLVER.STEPS": items(integer(1), least=0),
    "SOLVER.NUM_DECAYS": integer(0),
    "SOLVER.WARMUP_FACTOR": _fraction,
    "SOLVER.WARMUP_ITERS": integer(0),
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.POLY_LR_POWER": number(0, 100),
    "SOLVER.POLY_LR_CONSTANT_ENDING": _fraction,
    "SOLVER.CHECKPOINT_PERIOD": integer(0),
    "SOLVER.IMS_PER_BATCH": integer(1, 1_000_000),
    "SOLVER.ACCUMULATION_STEPS": integer(1, 1_000_000),
    "SOLVER.GRADIENT_REDUCTION": one_of("fp32", "bf16"),
    "SOLVER.REFERENCE_WORLD_SIZE": integer(0, 1_000_000),
    "SOLVER.REFERENCE_BATCH": integer(0, 1_000_000),
    "SOLVER.MAX_NONFINITE_STEPS": integer(0),
    "SOLVER.EMA_DECAY": _rate,
    "SOLVER.EARLY_STOP_PATIENCE": integer(0),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("full_model", "norm", "value"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(0, 1e12),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": number(0, above=True, infinite=True),
    "SOLVER.AMP.DTYPE": one_of("auto", *AMP_DTYPES),
    "TEST.EVAL_PERIOD": integer(0),
    "TEST.EXPECTED_RESULTS": items(_expected_result, least=0),
    "TEST.PRECISE_BN.NUM_ITER": integer(1),
    "TEST.PREVIEW_IMAGES": integer(0),  # 0: none
    "LOGGERS": items(one_of(*LOGGERS), least=0),
}
"""Rules of the keys that only a training reads."""


BUILDERS: dict[str, tuple[str, ...]] = {
    "build_optimizer": ("SOLVER.OPTIMIZER", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"),
    "build_lr_scheduler": ("SOLVER.LR_SCHEDULER_NAME",),
    "build_train_loader": ("DATALOADER.SAMPLER_TRAIN",),
}
"""Keys whose values name what a method of the trainer builds; a method of a subclass may know others."""


def check_values(cfg: CfgNode, training: bool, *, without: Sequence[str] = ()) -> None:
    """Check the type and range of every key alone.

    Args:
        cfg: may lack keys, and may have others than the defaults, which are not checked.
        training: check the keys that only a training reads, too.
        without: keys whose type is checked, but not the value.

    Raises:
        ConfigError: naming the key, its value, and what it must be.
    """
    values = dict(leaves(cfg))
    for key, default in _defaults().items():
        if key in values and not _same_kind(values[key], default):
            raise ConfigError(
                f"{key} is {values[key]!r}, but takes a value of type {type(default).__name__}, such as {default!r}"
            )
    rules: Mapping[str, Rule] = MODEL_RULES | TRAINING_RULES if training else MODEL_RULES
    _check_rules(values, {key: rule for key, rule in rules.items() if key not in without})


def check_builders(cfg: CfgNode, methods: Sequence[str]) -> None:
    """Check the keys of `BUILDERS` that these methods of the trainer read.

    Raises:
        ConfigError: naming the key, its value, and what it must be.
    """
    _check_rules(dict(leaves(cfg)), {key: TRAINING_RULES[key] for method in methods for key in BUILDERS[method]})


def _check_rules(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    for key, rule in rules.items():
        problem = rule(values[key]) if key in values else None
        if problem:
            raise ConfigError(f"{key} is {values[key]!r}, but {problem}")


@functools.cache
def _defaults() -> Mapping[str, Any]:
    return dict(leaves(load_config()))


def _same_kind(value: Any, default: Any) -> bool:
    if default is None:
        return True  # its rule decides
    if isinstance(default, Sequence) and not isinstance(default, str):
        return isinstance(value, list | tuple)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
