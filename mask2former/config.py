"""Configuration keys with their defaults, and the loading of configs.

The keys and defaults are those of the reference implementation (documented in GETTING_STARTED.md); keys that
only this project has are marked "ours" below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .config_files import find_config, read_config
from .errors import ConfigError
from .structures.task import IMAGE_TASKS, Task
from .utils.hints import did_you_mean
from .utils.text_files import expand_home
from .video_registration import register_named

__all__ = [
    "add_maskformer2_config",
    "add_maskformer2_video_config",
    "find_config",
    "leaves",
    "load_config",
    "merge_overrides",
    "micro_batch_size",
    "register_config_keys",
]

_MAY_BE_INFINITE = {"SOLVER.CLIP_GRADIENTS.NORM_TYPE"}  # the largest gradient


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
    """Add all keys (and detectron2's DeepLab keys, which the configs use) to `cfg`, in place. Idempotent.

    They include those of videos, so that each published config can be merged after it.
    """
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
    _defaults(
        cfg.MODEL,  # ours
        {
            "ALLOW_PARTIAL_WEIGHTS": False,  # evaluate and predict though weights are missing
            "COMPILE": "auto",  # how the network is run: off, graph, compile
            "CHECKPOINTING": [],  # of backbone, pixel_decoder, transformer_decoder: computed twice in training
        },
    )
    _defaults(
        cfg.DATALOADER,
        {
            "SKIP_BAD_RECORDS": False,  # ours
            "RANDOM_SUBSET_RATIO": 1.0,  # detectron2's, which reads it without declaring it
            "BALANCE_OBJECTS": False,  # ours: images with about as many objects go to all ranks at the same time
        },
    )
    _defaults(
        cfg.TEST,  # ours
        {
            "AMP": "off",  # precision of evaluations: off is fp32; auto, bfloat16, float16. SOLVER.AMP is of training
            "EVAL_AT_START": False,  # also evaluate before the first iteration
            "SCORE_THRESHOLD": 0.0,  # instances with a lower score are dropped
            "SEMANTIC_SCORES": True,  # "sem_seg" has the scores of all classes; False: the best class of each pixel
            "INSTANCE_TASKS": ["segm"],  # add "bbox" for AP of the masks' bounding boxes, "boundary" for boundary AP
            "BOUNDARY_IOU": False,  # semantic evaluation: also the boundary IoU of each class
            "SEMANTIC_PQ": False,  # semantic evaluation: also PQ with each class of an image as one segment
            "SAVE_PANOPTIC": False,  # also write the panoptic PNGs, not only predictions.json
            "PREVIEW_IMAGES": 4,  # images whose predictions the loggers show at each evaluation of a training
        },
    )
    _defaults(cfg, {"LOGGERS": ["tensorboard"]})  # ours: of tensorboard, wandb, mlflow, clearml
    add_maskformer2_video_config(cfg)


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
            "KEEP_EMPTY_INSTANCES": True,  # ours: mask_former_instance keeps objects that the crop removed
        },
    )
    _defaults(cfg.INPUT.CROP, {"SINGLE_CATEGORY_MAX_AREA": 1.0})
    # Ours: microscopy, and new images made of those of the dataset.
    # Images without objects: half of them soft clouds, the others black, white, one color, gradient, noise.
    _defaults(cfg.INPUT, {"EMPTY_PROB": 0.0})
    _defaults(_section(cfg.INPUT, "STAIN_AUG"), {"PROB": 0.0, "STRENGTH": 0.3, "SWAP_PROB": 0.3})
    _defaults(
        _section(cfg.INPUT, "INTENSITY_AUG"),
        {"GAMMA": 1.0, "BRIGHTNESS": 1.0, "INVERT_PROB": 0.0, "GRAY_PROB": 0.0, "BLUR": 0.0, "NOISE": 0.0},
    )
    _defaults(
        _section(cfg.INPUT, "COPY_PASTE"),
        {"PROB": 0.0, "OBJECTS": 20, "SOURCE": "other", "MIN_SCALE": 0.8, "MAX_SCALE": 1.25},
    )


def _add_solver(cfg: CfgNode) -> None:
    _defaults(
        cfg.SOLVER,
        {
            "WEIGHT_DECAY_EMBED": 0.0,
            "OPTIMIZER": "ADAMW",
            "BACKBONE_MULTIPLIER": 0.1,
            "REFERENCE_BATCH": 0,  # ours: images in the batch that BASE_LR is right for; 0: in any
            "ACCUMULATION_STEPS": 1,  # ours
            "GRADIENT_REDUCTION": "fp32",  # ours: or bf16, the format in which gradients go from rank to rank
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
            "QUERY_GROUPS": 1,  # ours: groups of queries in training, each matched by itself
            "QUERY_SELECTION": False,  # ours: the content of queries is that of selected tokens of the pixel decoder
            "SMALL_OBJECT_POINTS": 0.0,  # ours: share of uniform points that are drawn around objects instead
        },
    )
    # Ours: queries predict the IoU of their masks, which becomes part of the scores of instances.
    _defaults(
        _section(node, "MASK_QUALITY"),
        {
            "ENABLED": False,
            "LOSS_WEIGHT": 1.0,
            "POWER": 1.0,  # exponent in the scores of instances; 0: learned, but not used
        },
    )
    # Ours: queries of training that are made of objects with noise.
    _defaults(
        _section(node, "DENOISING"),
        {
            "QUERIES": 0,  # for each image; 0: none
            "LABEL_NOISE": 0.2,  # probability that a class is replaced
            "MASK_NOISE": 0.2,  # largest share of an object's tokens that change in an attention mask
            "MASK_LAYERS": 3,  # layers whose attention mask is that of the object
            "LOSS_WEIGHT": 1.0,  # factor of CLASS_WEIGHT, MASK_WEIGHT and DICE_WEIGHT
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


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key with a value as ("MODEL.DEVICE", "cuda"), in the order of the config."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_known(keys: Iterable[Any], known: Mapping[str, Any], source: str) -> None:
    for key in keys:
        if key in known:
            continue
        if any(other.startswith(f"{key}.") for other in known):
            raise ConfigError(f"{source}: {key} is a section with keys of its own, it has no value itself")
        hint, section = did_you_mean(str(key), known), str(key).rpartition(".")[0]
        if not hint or not any(other.startswith(f"{section}.") for other in known):
            hint += " Is it a key of another project? Import first what gives it to register_config_keys."
        raise ConfigError(f"Unknown config key '{key}' in {source}.{hint}")


_MORE_KEYS: list[Callable[[CfgNode], None]] = []


def register_config_keys(add: Callable[[CfgNode], None]) -> Callable[[CfgNode], None]:
    """Give all configs that `load_config` loads from now on the keys of another project; usable as a decorator.

    Args:
        add: sets keys with their defaults in the config that it gets. Called after the keys of this package are there.
    """
    if add not in _MORE_KEYS:
        _MORE_KEYS.append(add)
    return add


def load_config(config_file: str | Path | None = None, overrides: Sequence[Any] = ()) -> CfgNode:
    """Load the defaults, then `config_file` with its bases, then `overrides` (KEY VALUE KEY VALUE ...). Not frozen.

    A leading `~` of OUTPUT_DIR and of weights becomes the home directory (that of datasets, when they are registered).
    Names of video models and datasets in it are registered.

    Raises:
        FileNotFoundError: no such config file.
        ConfigError: an unknown key (the message names the most similar one), a value of the wrong type, NaN or
            infinity, or a file that is not plain YAML.
    """
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    for add in _MORE_KEYS:
        add(cfg)
    if config_file:
        path = find_config(config_file)
        values = read_config(path)
        _merge(cfg, list(leaves(values)), str(path))
    merge_overrides(cfg, overrides)
    _expand_paths(cfg)
    register_named(cfg)
    return cfg


def merge_overrides(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """Merge KEY VALUE KEY VALUE ... of a command line into a config that is not frozen, in place.

    Raises:
        ConfigError: an odd number of entries, an unknown key, a value of the wrong type, None, NaN or infinity.
    """
    if len(overrides) % 2:
        given = " ".join(map(str, overrides))
        joined = next((entry for entry in map(str, overrides[::2]) if "=" in entry), None)
        remedy = f". Write {joined.replace('=', ' ', 1)!r} instead of {joined!r}" if joined else ""
        raise ConfigError(f"Config keys and values come in pairs, KEY VALUE; this is an odd number: {given}{remedy}")
    _merge(cfg, list(zip(overrides[::2], overrides[1::2], strict=True)), "the command line")
    _expand_paths(cfg)


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


def _merge(cfg: CfgNode, pairs: Sequence[tuple[str, Any]], source: str) -> None:
    """Merge (key, value) pairs; a string is read as a Python literal where it is one, as yacs does."""
    former = dict(leaves(cfg))
    _check_known([key for key, _ in pairs], former, source)
    for key, value in pairs:
        default = former[key]
        try:
            new = CfgNode._decode_cfg_value(value)
            new = float(new) if type(new) is int and type(default) is float else new
            if not _finite(new) and key not in _MAY_BE_INFINITE:
                raise ConfigError(f"{source}: {key} is {new!r}; NaN and infinity cannot be used")
            if new is None and default is not None:  # yacs lets None replace anything
                raise ConfigError(f"{source}: {key} must not be None; it was {default!r}")
            # As a string it would be read as a literal a second time.
            cfg.merge_from_list([key, repr(new) if isinstance(new, str) else new])
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError, OverflowError) as error:
            kind = type(default).__name__
            text = f"{source}: {key} takes a value of type {kind}, such as {default!r}, not {_short(value)}"
            raise ConfigError(text) from error
        except (RecursionError, MemoryError) as error:  # of Python's parser of literals
            raise ConfigError(f"{source}: the value of {key} is nested too deeply") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _expand_paths(cfg: CfgNode) -> None:
    """Replace a leading `~`; the paths of DATASETS are expanded where they are looked up."""
    for node, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS"), (cfg.MODEL.TIMM, "WEIGHTS")):
        node[key] = expand_home(node[key])
