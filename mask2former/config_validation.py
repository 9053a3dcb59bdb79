"""Checks that reject a wrong setting before the first iteration."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from .config import micro_batch_size
from .data import mapper_names
from .errors import ConfigError
from .modeling.transformer_decoder import TRANSFORMER_DECODER_REGISTRY
from .objects import ObjectRules
from .structures.task import IMAGE_TASKS, Task, tasks_of
from .utils.device import AMP_DTYPES
from .utils.hints import did_you_mean

ARCHITECTURES = ("MaskFormer", "VideoMaskFormer", "SemanticSegmentor")
PER_PIXEL_HEADS = ("PerPixelBaselineHead", "PerPixelBaselinePlusHead")
LOGGERS = ("tensorboard", "wandb", "mlflow", "clearml")
MASKED_ATTENTION_DECODERS = ("MultiScaleMaskedTransformerDecoder", "VideoMultiScaleMaskedTransformerDecoder")


def validate_config(cfg: CfgNode, training: bool) -> None:
    """Reject settings that would fail, or silently train a different model, before the first iteration.

    Register the datasets first (`mask2former.data.register_all` and `register_from_config`).

    Raises:
        ConfigError: naming the key, its value and the remedy.
    """
    _validate_components(cfg)
    _validate_combinations(cfg)
    _validate_model(cfg)
    _validate_objects(cfg)
    if training:
        _validate_training(cfg)
        _validate_datasets(cfg, "TRAIN", cfg.DATASETS.TRAIN)
    _validate_datasets(cfg, "TEST", cfg.DATASETS.TEST)


def _validate_objects(cfg: CfgNode) -> None:
    """Reject rules of objects and tiles out of range, which would only be noticed after the training."""
    ObjectRules.from_config(cfg)
    tiles = cfg.MODEL.MASK_FORMER.TEST.TILES
    _require(
        tiles.SIZE == 0 or tiles.SIZE >= 16,
        f"MODEL.MASK_FORMER.TEST.TILES.SIZE is {tiles.SIZE}: set 0 (no tiles by themselves), or at least 16 pixels.",
    )
    _require(
        0.0 <= tiles.OVERLAP < 0.9,
        f"MODEL.MASK_FORMER.TEST.TILES.OVERLAP is {tiles.OVERLAP}: set a fraction of at least 0 and below 0.9.",
    )


def config_warnings(cfg: CfgNode) -> list[str]:
    """Return what is allowed in a training, but probably not meant."""
    warmup, iterations = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    if warmup <= iterations / 2:
        return []
    return [
        f"SOLVER.WARMUP_ITERS {warmup} is more than half of SOLVER.MAX_ITER {iterations}: most of the training runs "
        f"below SOLVER.BASE_LR. Usual is a tenth or less: SOLVER.WARMUP_ITERS {iterations // 10}."
    ]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    hint = did_you_mean(value, known)
    _require(value in known, f"{key} is '{value}', which does not exist.{hint} Known: {', '.join(sorted(known))}")


def _validate_components(cfg: CfgNode) -> None:
    known = [name for name in ARCHITECTURES if name in META_ARCH_REGISTRY]
    _require(
        cfg.MODEL.META_ARCHITECTURE in known,
        f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}', which is not a model of this package. Set it to "
        f"{' or '.join(repr(name) for name in known)}, or start from one of the files in configs/ with --config-file.",
    )
    heads = [name for name, _ in SEM_SEG_HEADS_REGISTRY]
    _one_of("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, [name for name, _ in BACKBONE_REGISTRY])
    _one_of("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, heads)
    _one_of("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, heads)
    _one_of(
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME,
        [name for name, _ in TRANSFORMER_DECODER_REGISTRY],
    )


def _validate_combinations(cfg: CfgNode) -> None:
    """Reject components that exist but cannot be combined."""
    node, head, architecture = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.META_ARCHITECTURE
    source, decoder = node.TRANSFORMER_IN_FEATURE, node.TRANSFORMER_DECODER_NAME
    per_pixel, tasks = head.NAME in PER_PIXEL_HEADS, tasks_of(cfg)
    _require(
        not per_pixel or architecture == "SemanticSegmentor",
        f"MODEL.SEM_SEG_HEAD.NAME '{head.NAME}' predicts per pixel: set MODEL.META_ARCHITECTURE 'SemanticSegmentor'.",
    )
    _require(
        head.NAME != "MaskFormerHead" or architecture != "SemanticSegmentor",
        "MODEL.SEM_SEG_HEAD.NAME 'MaskFormerHead' predicts masks: set MODEL.META_ARCHITECTURE 'MaskFormer'.",
    )
    _require(
        architecture != "VideoMaskFormer" or tasks <= {Task.INSTANCE},
        "MODEL.META_ARCHITECTURE 'VideoMaskFormer' predicts instances only: set MODEL.MASK_FORMER.TEST.SEMANTIC_ON and "
        "PANOPTIC_ON to False.",
    )
    _require(
        not per_pixel or tasks <= {Task.SEMANTIC},
        f"MODEL.SEM_SEG_HEAD.NAME '{head.NAME}' predicts semantic segmentation only: set "
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON and PANOPTIC_ON to False.",
    )
    _require(
        per_pixel or decoder not in MASKED_ATTENTION_DECODERS or source == "multi_scale_pixel_decoder",
        f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME '{decoder}' needs multi-scale features, not '{source}': set "
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE 'multi_scale_pixel_decoder'.",
    )
    _require(
        source != "transformer_encoder" or head.PIXEL_DECODER_NAME != "BasePixelDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE 'transformer_encoder' needs a pixel decoder with an encoder: set "
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME 'TransformerEncoderPixelDecoder'.",
    )


def _validate_model(cfg: CfgNode) -> None:
    node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    _require(
        node.HIDDEN_DIM % node.NHEADS == 0,
        f"MODEL.MASK_FORMER.HIDDEN_DIM {node.HIDDEN_DIM} must be a multiple of NHEADS {node.NHEADS}",
    )
    _require(
        head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS in (8, node.NHEADS),
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS has no effect: the pixel decoder takes "
        f"MODEL.MASK_FORMER.NHEADS ({node.NHEADS}). Set that key instead.",
    )
    _require(node.DEC_LAYERS >= 1, "MODEL.MASK_FORMER.DEC_LAYERS counts the initial prediction too: at least 1")
    _require(node.NUM_OBJECT_QUERIES >= 1, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES must be at least 1")
    _require(node.TRAIN_NUM_POINTS >= 1, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS must be at least 1")
    _require(node.OVERSAMPLE_RATIO >= 1, "MODEL.MASK_FORMER.OVERSAMPLE_RATIO must be at least 1")
    _require(
        0 <= node.IMPORTANCE_SAMPLE_RATIO <= 1, "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO must lie between 0 and 1"
    )
    _require(
        bool(tasks_of(cfg)),
        f"MODEL.MASK_FORMER.TEST: turn on at least one of {', '.join(task.switch for task in IMAGE_TASKS)}",
    )
    _require(cfg.TEST.DETECTIONS_PER_VIDEO >= 1, "TEST.DETECTIONS_PER_VIDEO must be at least 1")
    window = cfg.TEST.WINDOW_FRAMES
    _require(window >= 0, "TEST.WINDOW_FRAMES is a number of frames, or 0 for the complete clip at once")
    _require(
        window == 0 or 0 <= cfg.TEST.WINDOW_OVERLAP < window,
        f"TEST.WINDOW_OVERLAP must lie between 0 and TEST.WINDOW_FRAMES - 1 = {window - 1}",
    )


def _validate_training(cfg: CfgNode) -> None:
    video = cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
    _one_of("INPUT.DATASET_MAPPER_NAME", cfg.INPUT.DATASET_MAPPER_NAME, mapper_names(video))
    _one_of("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, ("ADAMW", "SGD"))
    _one_of("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, ("auto", *AMP_DTYPES))
    # The number of ranks matters only after SOLVER.REFERENCE_WORLD_SIZE has scaled the batch.
    micro_batch_size(cfg, ranks=1)
    _require(0 <= cfg.SOLVER.EMA_DECAY < 1, "SOLVER.EMA_DECAY must lie in [0, 1)")
    warmup, iterations = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    _require(
        warmup < iterations or warmup <= 0,
        f"SOLVER.WARMUP_ITERS is {warmup}, but the training ends after SOLVER.MAX_ITER {iterations} iterations: it "
        f"would never leave the warm-up. Add SOLVER.WARMUP_ITERS {iterations // 10} to the command or the config, or "
        "train longer.",
    )
    for name in cfg.LOGGERS:
        _one_of("LOGGERS", name, LOGGERS)
    _require(cfg.TEST.PREVIEW_IMAGES >= 0, "TEST.PREVIEW_IMAGES is a number of images, or 0 for none")
    _require(len(cfg.DATASETS.TRAIN) > 0, "DATASETS.TRAIN is empty: set at least one dataset")


def _validate_datasets(cfg: CfgNode, split: str, names: Sequence[str]) -> None:
    for name in names:
        known = list(DatasetCatalog)
        _require(
            name in known,
            f"DATASETS.{split} names '{name}', which is not registered.{did_you_mean(name, known, 3)} "
            "Register a custom dataset with DATASETS.COCO_JSON: [[name, file.json, image directory]], "
            "DATASETS.COCO_PANOPTIC, DATASETS.SEMANTIC_FOLDER or, for videos, DATASETS.YTVIS_JSON.",
        )
        metadata = MetadataCatalog.get(name)
        _validate_frames(cfg, split, name, metadata.get("evaluator_type"))
        evaluator = metadata.get("evaluator_type", "coco")
        attribute = (
            "thing_classes" if evaluator in ("coco", "lvis", "ytvis", "cityscapes_instance") else "stuff_classes"
        )
        classes = metadata.get(attribute)
        count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        _require(
            classes is None or len(classes) == count,
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {count}, but dataset '{name}' (DATASETS.{split}) has "
            f"{len(classes or ())} classes. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(classes or ())}.",
        )
        ignored = metadata.get("ignore_label", 255)
        _require(
            cfg.MODEL.SEM_SEG_HEAD.NAME not in PER_PIXEL_HEADS or ignored == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}, but dataset '{name}' "
            f"(DATASETS.{split}) ignores label {ignored}. Set MODEL.SEM_SEG_HEAD.IGNORE_VALUE {ignored}.",
        )


def _validate_frames(cfg: CfgNode, split: str, name: str, evaluator: str | None) -> None:
    """Require the video model for videos, and a mapper that builds clips where it is trained on images."""
    video = cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
    mapper = cfg.INPUT.DATASET_MAPPER_NAME if split == "TRAIN" else ""
    _require(
        video or evaluator != "ytvis",
        f"DATASETS.{split} names '{name}', which holds videos: set MODEL.META_ARCHITECTURE 'VideoMaskFormer' and "
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME 'VideoMultiScaleMaskedTransformerDecoder', or start from a file "
        "of configs/youtubevis_2019.",
    )
    _require(
        not video or mapper in ("coco_clip", "mixed_clips") or evaluator in (None, "ytvis"),
        f"DATASETS.{split} names '{name}', which holds images, but MODEL.META_ARCHITECTURE is 'VideoMaskFormer'. "
        "Name videos, for example 'ytvis_2019_val'; or train on clips generated from images with "
        "INPUT.DATASET_MAPPER_NAME 'coco_clip', or 'mixed_clips' beside videos; or set MODEL.META_ARCHITECTURE "
        "'MaskFormer'.",
    )
    _require(
        mapper != "coco_clip" or evaluator != "ytvis",
        f"DATASETS.{split} names '{name}', which holds videos, but INPUT.DATASET_MAPPER_NAME 'coco_clip' generates "
        "clips from images: set 'ytvis', or 'mixed_clips' for videos and images.",
    )
