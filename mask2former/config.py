"""Configuration keys with their defaults, and the loading of YAML files.

The keys and defaults are those of the reference implementation (documented in GETTING_STARTED.md); keys that
only this project has are marked "ours" below.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from .errors import ConfigError
from .structures.task import IMAGE_TASKS, Task
from .utils.hints import did_you_mean

__all__ = [
    "add_maskformer2_config",
    "add_maskformer2_video_config",
    "find_config",
    "load_config",
    "merge_overrides",
    "micro_batch_size",
]

_ROOTS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


def _defaults(node: CfgNode, values: Mapping[str, Any]) -> None:
    """Set each key that `node` lacks, so that adding a config twice never resets a user's value."""
    for key, value in values.items():
        if key not in node:
            setattr(node, key, value)


def _section(node: CfgNode, name: str) -> CfgNode:
    if name not in node:
        setattr(node, name, CfgNode())
    return node[name]


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add all image keys (and detectron2's DeepLab keys, which the configs use) to `cfg`, in place. Idempotent."""
    if "POLY_LR_POWER" not in cfg.SOLVER:
        from detectron2.projects.deeplab import add_deeplab_config

        add_deeplab_config(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_mask_former(_section(cfg.MODEL, "MASK_FORMER"))
    _add_head(cfg.MODEL.SEM_SEG_HEAD)
    _add_backbones(cfg.MODEL)
    _defaults(
        cfg.DATASETS,  # ours: custom datasets
        {
            "COCO_JSON": [],  # [name, JSON file, image directory] each
            "COCO_PANOPTIC": [],  # [name, panoptic JSON, image directory, PNG directory] each, optionally instance JSON
            "SEMANTIC_FOLDER": [],  # [name, image directory, label directory, classes] each, optionally ignored value
            "YTVIS_JSON": [],  # [name, JSON file, frame directory] each
        },
    )
    _defaults(cfg.MODEL, {"ALLOW_PARTIAL_WEIGHTS": False})  # ours: evaluate and predict though weights are missing
    # The second is detectron2's, which reads it without declaring it.
    _defaults(cfg.DATALOADER, {"SKIP_BAD_RECORDS": False, "RANDOM_SUBSET_RATIO": 1.0})  # ours
    _defaults(
        cfg.TEST,  # ours
        {
            "EVAL_AT_START": False,  # also evaluate before the first iteration
            "SCORE_THRESHOLD": 0.0,  # instances with a lower score are dropped
            "INSTANCE_TASKS": ["segm"],  # add "bbox" for AP of the masks' bounding boxes, "boundary" for boundary AP
            "BOUNDARY_IOU": False,  # semantic evaluation: also the boundary IoU of each class
            "SEMANTIC_PQ": False,  # semantic evaluation: also PQ with each class of an image as one segment
            "SAVE_PANOPTIC": False,  # also write the panoptic PNGs, not only predictions.json
            "PREVIEW_IMAGES": 4,  # images whose predictions the loggers show at each evaluation of a training
        },
    )
    _defaults(cfg, {"LOGGERS": ["tensorboard"]})  # ours: of tensorboard, wandb, mlflow, clearml


def add_maskformer2_video_config(cfg: CfgNode) -> None:
    """Add the keys of video models and datasets to `cfg`, in place. Idempotent."""
    _defaults(
        cfg.INPUT,
        {
            "SAMPLING_FRAME_NUM": 2,
            "SAMPLING_FRAME_RANGE": 20,
            "SAMPLING_FRAME_SHUFFLE": False,
            "AUGMENTATIONS": [],
        },
    )
    # Ours: the number is fixed in the reference, which has no windows. WINDOW_FRAMES 0: the complete clip at once.
    _defaults(cfg.TEST, {"DETECTIONS_PER_VIDEO": 10, "WINDOW_FRAMES": 0, "WINDOW_OVERLAP": 6})


def _add_input(cfg: CfgNode) -> None:
    _defaults(
        cfg.INPUT,
        {
            "DATASET_MAPPER_NAME": "mask_former_semantic",
            "COLOR_AUG_SSD": False,
            "SIZE_DIVISIBILITY": -1,  # the mapper pads to this fixed square; it is a size, not a divisor
            "IMAGE_SIZE": 1024,
            "MIN_SCALE": 0.1,
            "MAX_SCALE": 2.0,
            "RANDOM_ROT90": False,  # ours
        },
    )
    _defaults(cfg.INPUT.CROP, {"SINGLE_CATEGORY_MAX_AREA": 1.0})


def _add_solver(cfg: CfgNode) -> None:
    _defaults(
        cfg.SOLVER,
        {
            "WEIGHT_DECAY_EMBED": 0.0,
            "OPTIMIZER": "ADAMW",
            "BACKBONE_MULTIPLIER": 0.1,
            "ACCUMULATION_STEPS": 1,  # ours
            "MAX_NONFINITE_STEPS": 10,  # ours
            "EMA_DECAY": 0.0,  # ours
            "EARLY_STOP_PATIENCE": 0,  # ours: evaluations without improvement after which a training ends; 0: never
        },
    )
    _defaults(cfg.SOLVER.AMP, {"DTYPE": "auto"})  # ours: auto, bfloat16 or float16


def _add_mask_former(node: CfgNode) -> None:
    _defaults(
        node,
        {
            "DEEP_SUPERVISION": True,
            "NO_OBJECT_WEIGHT": 0.1,
            "CLASS_WEIGHT": 1.0,
            "DICE_WEIGHT": 1.0,
            "MASK_WEIGHT": 20.0,
            "NHEADS": 8,
            "DROPOUT": 0.1,
            "DIM_FEEDFORWARD": 2048,
            "ENC_LAYERS": 0,
            "DEC_LAYERS": 6,
            "PRE_NORM": False,
            "HIDDEN_DIM": 256,
            "NUM_OBJECT_QUERIES": 100,
            "TRANSFORMER_IN_FEATURE": "res5",
            "ENFORCE_INPUT_PROJ": False,
            "SIZE_DIVISIBILITY": 32,
            "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
            "TRAIN_NUM_POINTS": 112 * 112,
            "OVERSAMPLE_RATIO": 3.0,
            "IMPORTANCE_SAMPLE_RATIO": 0.75,
        },
    )
    _defaults(
        _section(node, "TEST"),
        {
            **{task.switch: task is Task.SEMANTIC for task in IMAGE_TASKS},
            "OBJECT_MASK_THRESHOLD": 0.0,
            "OVERLAP_THRESHOLD": 0.0,
            "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
        },
    )
    # Ours: how instances become the objects that are counted, drawn and saved. Evaluation does not use it.
    _defaults(
        _section(node.TEST, "INSTANCES"),
        {
            "SCORE_THRESHOLD": 0.5,
            "FILL_HOLES": False,
            "NMS_IOU": 1.0,  # 1: no suppression
            "NON_OVERLAPPING": False,
            "MAX_OVERLAP": 0.5,  # with NON_OVERLAPPING
            "COMPONENTS": "all",  # all, largest or split
            "MIN_AREA": 0,  # pixels
        },
    )
    _defaults(_section(node.TEST, "TILES"), {"SIZE": 0, "OVERLAP": 0.25})  # ours; SIZE 0: tiles only on demand


def _add_head(node: CfgNode) -> None:
    _defaults(
        node,
        {
            "MASK_DIM": 256,
            "TRANSFORMER_ENC_LAYERS": 0,
            "PIXEL_DECODER_NAME": "BasePixelDecoder",
            "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
            "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
            "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
            "DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 1024,  # ours; fixed in the reference
        },
    )


def _add_backbones(model: CfgNode) -> None:
    _defaults(
        _section(model, "SWIN"),
        {
            "PRETRAIN_IMG_SIZE": 224,
            "PATCH_SIZE": 4,
            "EMBED_DIM": 96,
            "DEPTHS": [2, 2, 6, 2],
            "NUM_HEADS": [3, 6, 12, 24],
            "WINDOW_SIZE": 7,
            "MLP_RATIO": 4.0,
            "QKV_BIAS": True,
            "QK_SCALE": None,
            "DROP_RATE": 0.0,
            "ATTN_DROP_RATE": 0.0,
            "DROP_PATH_RATE": 0.3,
            "APE": False,
            "PATCH_NORM": True,
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "USE_CHECKPOINT": False,
        },
    )
    _defaults(
        _section(model, "TIMM"),  # ours
        {
            "NAME": "resnet50",  # any timm model that supports features_only
            "WEIGHTS": "",  # a local file with timm's own key names (.safetensors or .pth)
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "DROP_PATH_RATE": 0.0,
            "FREEZE_NORM": False,  # batch norms keep their pretrained statistics and scales
        },
    )


def find_config(name: str | Path) -> Path:
    """Find a config file, given as a path or as a name below `configs/` (with or without `.yaml`).

    Raises:
        FileNotFoundError: no such file; the message lists the most similar names.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    relative = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    for root in _ROOTS:
        for candidate in (root / relative, root / f"{relative}.yaml"):
            if candidate.is_file():
                return candidate
    known = sorted({str(p.relative_to(r)) for r in _ROOTS for p in r.rglob("*.yaml")})
    hint = did_you_mean(str(relative), known, 3)
    raise FileNotFoundError(f"Config file '{name}' does not exist, neither as a path nor below configs/.{hint}")


class _SafeYaml(CfgNode):
    """YAML loader without unsafe tags; one expression in the reference's files is parsed as data."""

    # `!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]`: a list of shortest edges.
    _SIZES = re.compile(
        r'!!python/object/apply:eval\s*\[\s*"\[int\(x \* 0\.1 \* (\d+)\) for x in range\((\d+), (\d+)\)\]"\s*\]'
    )

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        text = Path(filename).read_text(encoding="utf-8")

        def expand(match: re.Match[str]) -> str:
            size, start, stop = map(int, match.groups())
            return str([int(x * 0.1 * size) for x in range(start, min(stop, start + 1000))])

        return io.StringIO(cls._SIZES.sub(expand, text))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _SafeYaml.load_yaml_with_base(str(path))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} (or a file named in its _BASE_) is not plain YAML: {error}. "
            "Tags that run Python are not accepted; write the value itself."
        ) from error
    except (TypeError, AttributeError):  # this file or one of its bases is not a mapping
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} (or a file named in its _BASE_) must hold keys and values, for example 'MODEL:'")
    version = values.pop("VERSION", 2)
    if version != 2:
        raise ConfigError(f"{path}: VERSION {version} is not supported, write VERSION: 2")
    return values


def _leaf_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check_known(keys: Sequence[str], cfg: CfgNode, source: str) -> None:
    known = set(_leaf_keys(cfg))
    for key in keys:
        if key not in known:
            raise ConfigError(f"Unknown config key '{key}' in {source}.{did_you_mean(key, known)}")


def load_config(config_file: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Load the defaults, then `config_file` with its bases, then `overrides` (KEY VALUE KEY VALUE ...). Not frozen.

    Raises:
        FileNotFoundError: no such config file.
        ConfigError: an unknown key (the message names the most similar one), a value of the wrong type, or unsafe YAML.
    """
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    add_maskformer2_video_config(cfg)
    if config_file:
        path = find_config(config_file)
        values = _read_yaml(path)
        _check_known(list(_leaf_keys(values)), cfg, str(path))
        _merge(lambda: cfg.merge_from_other_cfg(CfgNode(values)), str(path))
    merge_overrides(cfg, overrides)
    return cfg


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Merge KEY VALUE KEY VALUE ... of a command line into a config that is not frozen, in place.

    Raises:
        ConfigError: an odd number of entries, an unknown key, or a value of the wrong type.
    """
    if len(overrides) % 2:
        raise ConfigError(f"Overrides come in pairs KEY VALUE; got an odd number: {' '.join(overrides)}")
    _check_known(list(overrides[::2]), cfg, "the command line")
    _merge(lambda: cfg.merge_from_list(list(overrides)), "the command line")


def micro_batch_size(cfg: CfgNode, ranks: int) -> int:
    """Return the number of samples in one forward pass of one rank in training.

    Args:
        cfg: SOLVER.IMS_PER_BATCH and SOLVER.ACCUMULATION_STEPS are read.
        ranks: number of ranks that share an iteration.

    Raises:
        ConfigError: the batch cannot be split evenly; the message names the keys.
    """
    images, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if steps < 1 or images < 1 or images % (steps * ranks):
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {images} must be a multiple of the number of ranks ({ranks}) times "
            f"SOLVER.ACCUMULATION_STEPS ({steps}), and both at least 1"
        )
    return images // (steps * ranks)


def _merge(merge: Any, source: str) -> None:
    try:
        merge()
    except (ValueError, KeyError, AssertionError) as error:
        raise ConfigError(f"{source}: {error}") from error
