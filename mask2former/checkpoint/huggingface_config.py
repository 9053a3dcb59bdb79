"""Conversion of Hugging Face's `Mask2FormerConfig` (config.json) to and from our configuration keys."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadRecordError, CheckpointError
from ..structures.task import IMAGE_TASKS
from ..utils.file_io import read_json_object

_STAGES = ("stage1", "stage2", "stage3", "stage4")
_LEVELS = ["res2", "res3", "res4", "res5"]

# (key in config.json, our key, value when config.json leaves it out)
_HEAD = (
    ("feature_size", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
    ("mask_feature_size", "MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
    ("encoder_layers", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 6),
    ("encoder_feedforward_dim", "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", 1024),
    ("common_stride", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 4),
    ("ignore_value", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 255),
    ("hidden_dim", "MODEL.MASK_FORMER.HIDDEN_DIM", 256),
    ("num_queries", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
    ("num_attention_heads", "MODEL.MASK_FORMER.NHEADS", 8),
    ("dropout", "MODEL.MASK_FORMER.DROPOUT", 0.0),
    ("dim_feedforward", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
    ("decoder_layers", "MODEL.MASK_FORMER.DEC_LAYERS", 10),  # both count layers + 1
    ("pre_norm", "MODEL.MASK_FORMER.PRE_NORM", False),
    ("enforce_input_projection", "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", False),
    ("no_object_weight", "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.1),
    ("class_weight", "MODEL.MASK_FORMER.CLASS_WEIGHT", 2.0),
    ("mask_weight", "MODEL.MASK_FORMER.MASK_WEIGHT", 5.0),
    ("dice_weight", "MODEL.MASK_FORMER.DICE_WEIGHT", 5.0),
    ("train_num_points", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 12544),
    ("oversample_ratio", "MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 3.0),
    ("importance_sample_ratio", "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 0.75),
    ("use_auxiliary_loss", "MODEL.MASK_FORMER.DEEP_SUPERVISION", True),
)
_SWIN = (
    ("image_size", "MODEL.SWIN.PRETRAIN_IMG_SIZE", 224),
    ("patch_size", "MODEL.SWIN.PATCH_SIZE", 4),
    ("embed_dim", "MODEL.SWIN.EMBED_DIM", 96),
    ("depths", "MODEL.SWIN.DEPTHS", [2, 2, 18, 2]),
    ("num_heads", "MODEL.SWIN.NUM_HEADS", [3, 6, 12, 24]),
    ("window_size", "MODEL.SWIN.WINDOW_SIZE", 7),
    ("mlp_ratio", "MODEL.SWIN.MLP_RATIO", 4.0),
    ("qkv_bias", "MODEL.SWIN.QKV_BIAS", True),
    ("hidden_dropout_prob", "MODEL.SWIN.DROP_RATE", 0.0),
    ("attention_probs_dropout_prob", "MODEL.SWIN.ATTN_DROP_RATE", 0.0),
    ("drop_path_rate", "MODEL.SWIN.DROP_PATH_RATE", 0.3),
)
# Settings with only one supported value; no published checkpoint has another.
_FIXED = (("activation_function", "relu"), ("feature_strides", [4, 8, 16, 32]))
_SWIN_FIXED = (("hidden_act", "gelu"), ("use_absolute_embeddings", False), ("num_channels", 3))

_MEAN = [123.675, 116.28, 103.53]
_STD = [58.395, 57.12, 57.375]


def config_from_huggingface(
    config: Mapping[str, Any] | str | os.PathLike[str], task: str | None = None
) -> dict[str, Any]:
    """Convert a config.json to the configuration keys and values of the same model.

    Args:
        config: the settings, a config.json, or its directory.
        task: "semantic", "instance" or "panoptic": enables its post-processing, with the thresholds of the published
            configurations. config.json does not contain the task.

    Returns:
        {dotted key: value}; `cfg.merge_from_list([x for item in keys.items() for x in item])` applies them.

    Raises:
        FileNotFoundError: no config.json.
        CheckpointError: another type of model, or a setting without equivalent in this project.
    """
    settings, where = _read(config)
    backbone = settings.get("backbone_config") or {}
    if settings.get("model_type") != "mask2former" or backbone.get("model_type", "swin") != "swin":
        types = f"{settings.get('model_type')!r} with backbone {backbone.get('model_type')!r}"
        raise CheckpointError(f"{where}: model_type {types}; only mask2former with swin can be converted")
    _require(settings, _FIXED, where)
    _require(backbone, _SWIN_FIXED, f"{where}, backbone_config")
    if tuple(backbone.get("out_features") or _STAGES) != _STAGES:
        raise CheckpointError(f"{where}: out_features {backbone['out_features']} must be {list(_STAGES)}")
    keys: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.PIXEL_MEAN": list(_MEAN),
        "MODEL.PIXEL_STD": list(_STD),
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.PATCH_NORM": True,
        "MODEL.SWIN.OUT_FEATURES": list(_LEVELS),
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(class_names_from_huggingface(settings)),
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": list(_LEVELS),
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": _LEVELS[1:],
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
        "INPUT.FORMAT": "RGB",
    }
    keys.update({ours: settings.get(theirs, default) for theirs, ours, default in _HEAD})
    keys.update({ours: backbone.get(theirs, default) for theirs, ours, default in _SWIN})
    keys["MODEL.SWIN.MLP_RATIO"] = float(keys["MODEL.SWIN.MLP_RATIO"])
    return {**keys, **_task_keys(task)}


def class_names_from_huggingface(config: Mapping[str, Any] | str | os.PathLike[str]) -> list[str]:
    """Return the class names in the order of their ids; transformers omits id2label for two unnamed classes."""
    settings, where = _read(config)
    names = settings.get("id2label")
    if names is None:
        return [f"LABEL_{i}" for i in range(int(settings.get("num_labels", 2)))]
    by_id = {int(key): str(name) for key, name in names.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise CheckpointError(f"{where}: id2label must number the classes 0, 1, 2, ... without gaps")
    return [by_id[i] for i in range(len(by_id))]


def config_to_huggingface(cfg: Any, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Build the content of config.json for a configuration.

    Args:
        cfg: detectron2 configuration with this project's keys.
        class_names: K names; "LABEL_0", ... if None.

    Raises:
        CheckpointError: a model that Hugging Face's code cannot build.
    """
    required = {
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.PATCH_NORM": True,
        "MODEL.SWIN.QK_SCALE": None,
        "MODEL.SWIN.OUT_FEATURES": _LEVELS,
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": _LEVELS[1:],
    }
    for key, value in required.items():
        if _get(cfg, key) != value:
            raise CheckpointError(f"Hugging Face's model needs {key} = {value!r}, not {_get(cfg, key)!r}")
    classes = int(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    names = list(class_names) if class_names is not None else [f"LABEL_{i}" for i in range(classes)]
    if len(names) != classes:
        raise CheckpointError(f"{len(names)} class names for MODEL.SEM_SEG_HEAD.NUM_CLASSES = {classes}")
    backbone: dict[str, Any] = {"model_type": "swin", "out_features": list(_STAGES), "layer_norm_eps": 1e-5}
    backbone.update({theirs: _get(cfg, ours) for theirs, ours, _ in _SWIN})
    backbone.update({theirs: value for theirs, value in _SWIN_FIXED})
    settings: dict[str, Any] = {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": backbone,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    settings.update({theirs: _get(cfg, ours) for theirs, ours, _ in _HEAD})
    settings.update({theirs: value for theirs, value in _FIXED})
    return settings


def preprocessor_to_huggingface(cfg: Any) -> dict[str, Any]:
    """Build the content of preprocessor_config.json: sizes, and normalization for pixels in [0, 1]."""
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "size_divisor": 32,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }


def _task_keys(task: str | None) -> dict[str, Any]:
    if task is None:
        return {}
    if task not in IMAGE_TASKS:
        raise ValueError(f"task {task!r} must be one of {', '.join(IMAGE_TASKS)}")
    test = "MODEL.MASK_FORMER.TEST."
    keys: dict[str, Any] = {f"{test}{each.switch}": each == task for each in IMAGE_TASKS}
    return {**keys, f"{test}OBJECT_MASK_THRESHOLD": 0.8, f"{test}OVERLAP_THRESHOLD": 0.8}


def _read(config: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[Mapping[str, Any], str]:
    if isinstance(config, Mapping):
        return config, "config"
    file = Path(config)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a Hugging Face directory has a config.json beside its weights")
    try:
        return read_json_object(str(file)), str(file)
    except BadRecordError as error:
        raise CheckpointError(str(error)) from error


def _require(settings: Mapping[str, Any], fixed: Sequence[tuple[str, Any]], where: str) -> None:
    for key, value in fixed:
        actual = settings.get(key, value)
        if (list(actual) if isinstance(actual, (list, tuple)) else actual) != value:
            raise CheckpointError(f"{where}: {key} = {actual!r} is not supported (only {value!r})")


def _get(cfg: Any, key: str) -> Any:
    value = cfg
    for part in key.split("."):
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value
