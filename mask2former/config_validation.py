"""Checks that reject a wrong setting before the first iteration.

Only what this package builds is checked: a meta-architecture, head or mapper of another project may read the same keys
in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

from .config import micro_batch_size
from .config_values import check_values
from .data import mapper_names
from .errors import ConfigError
from .modeling.transformer_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder
from .structures.task import IMAGE_TASKS, Task, tasks_of
from .utils.hints import did_you_mean

ARCHITECTURES = ("MaskFormer", "VideoMaskFormer", "SemanticSegmentor")
PER_PIXEL_HEADS = ("PerPixelBaselineHead", "PerPixelBaselinePlusHead")
MASKED_ATTENTION_DECODERS = ("MultiScaleMaskedTransformerDecoder", "VideoMultiScaleMaskedTransformerDecoder")


def validate_config(cfg: CfgNode, training: bool, *, without: Sequence[str] = ()) -> None:
    """Reject settings that would fail, or silently train a different model, before the first iteration.

    Register the datasets (`mask2former.data.register_all` and `register_from_config`) and custom components first.
    INPUT.DATASET_MAPPER_NAME is checked by `check_mapper_name`, because a trainer may have mappers of its own.

    Args:
        cfg: the config.
        training: check what only a training reads, too.
        without: see `check_values`.

    Raises:
        ConfigError: naming the key, its value and the remedy.
    """
    check_values(cfg, training, without=without)
    _validate_components(cfg)
    if _has_own_model(cfg):
        if _has_own_head(cfg):
            _validate_combinations(cfg)
            _validate_queries(cfg)
            _validate_mask_quality(cfg)
            _validate_model(cfg)
        _validate_backbone(cfg)
        _validate_inference(cfg)
    if training:
        _validate_training(cfg)
        _validate_datasets(cfg, "TRAIN", cfg.DATASETS.TRAIN)
        _validate_augmentation(cfg)
        _validate_mapper_options(cfg)
    _validate_datasets(cfg, "TEST", cfg.DATASETS.TEST)


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


def check_mapper_name(cfg: CfgNode) -> None:
    """Check INPUT.DATASET_MAPPER_NAME, where `mask2former.data.build_train_loader` is to build the mapper.

    Raises:
        ConfigError: there is no such mapper.
    """
    names = mapper_names(_is_video(cfg))
    _one_of("INPUT.DATASET_MAPPER_NAME", cfg.INPUT.DATASET_MAPPER_NAME, names)


def _is_video(cfg: CfgNode) -> bool:
    return bool(cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer")


def _is_ours(registry: Registry, name: str) -> bool:
    """Return whether a registered component is one of this package, or of detectron2, which it builds on."""
    package = __name__.rpartition(".")[0]
    owner = registry.get(name).__module__
    return any(owner == each or owner.startswith(f"{each}.") for each in (package, f"{package}_video", "detectron2"))


def _has_own_model(cfg: CfgNode) -> bool:
    """Return whether this package builds the model: not where another project's meta-architecture does."""
    return _is_ours(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)


def _has_own_mapper(cfg: CfgNode) -> bool:
    return cfg.INPUT.DATASET_MAPPER_NAME in mapper_names(_is_video(cfg))


def _has_own_head(cfg: CfgNode) -> bool:
    """Return whether a head of this package builds pixel decoder and transformer decoder."""
    name = cfg.MODEL.SEM_SEG_HEAD.NAME
    return name in SEM_SEG_HEADS_REGISTRY and _is_ours(SEM_SEG_HEADS_REGISTRY, name)


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    hint = did_you_mean(value, known)
    _require(value in known, f"{key} is '{value}', which does not exist.{hint} Known: {', '.join(sorted(known))}")


def _validate_components(cfg: CfgNode) -> None:
    name = cfg.MODEL.META_ARCHITECTURE
    known = [each for each in ARCHITECTURES if each in META_ARCH_REGISTRY]
    _require(
        name in known or (name in META_ARCH_REGISTRY and not _has_own_model(cfg)),
        f"MODEL.META_ARCHITECTURE is '{name}', which is not a model of this package, nor one that your program has "
        f"registered. Import the module that registers it, or set it to {' or '.join(map(repr, known))}, or start from "
        "one of the files in configs/ with --config-file.",
    )
    heads = [each for each, _ in SEM_SEG_HEADS_REGISTRY]
    if _has_own_model(cfg):
        _one_of("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, [each for each, _ in BACKBONE_REGISTRY])
        _one_of("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, heads)
    if not _has_own_head(cfg):
        return
    _one_of("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, heads)
    _one_of(
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME,
        [each for each, _ in TRANSFORMER_DECODER_REGISTRY],
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


def _validate_queries(cfg: CfgNode) -> None:
    """Reject queries of training and selected ones where head or decoder have none."""
    node, model = cfg.MODEL.MASK_FORMER, _decoder_and_head(cfg)
    for key, value, off in (
        ("QUERY_GROUPS", node.QUERY_GROUPS, 1),
        ("DENOISING.QUERIES", node.DENOISING.QUERIES, 0),
        ("QUERY_SELECTION", node.QUERY_SELECTION, False),
    ):
        _require(
            value == off or _has_masked_attention(cfg),
            f"MODEL.MASK_FORMER.{key} is {value}, but only {' and '.join(MASKED_ATTENTION_DECODERS)} have such "
            f"queries, not {model}: set MODEL.MASK_FORMER.{key} {off}.",
        )
    _require(
        not node.DENOISING.QUERIES or node.DEC_LAYERS > 1,
        "MODEL.MASK_FORMER.DENOISING.QUERIES needs a decoder with layers: set MODEL.MASK_FORMER.DEC_LAYERS to 2 or "
        "more (it counts the prediction before the first layer)",
    )


def _has_masked_attention(cfg: CfgNode) -> bool:
    decoder = TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)
    masked = isinstance(decoder, type) and issubclass(decoder, MultiScaleMaskedTransformerDecoder)
    return masked and cfg.MODEL.SEM_SEG_HEAD.NAME not in PER_PIXEL_HEADS


def _decoder_and_head(cfg: CfgNode) -> str:
    decoder, head = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME, cfg.MODEL.SEM_SEG_HEAD.NAME
    return f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME '{decoder}' with MODEL.SEM_SEG_HEAD.NAME '{head}'"


def _validate_mask_quality(cfg: CfgNode) -> None:
    """Reject predicted mask quality where the model predicts none."""
    remedy = "set MODEL.MASK_FORMER.MASK_QUALITY.ENABLED False."
    enabled = cfg.MODEL.MASK_FORMER.MASK_QUALITY.ENABLED
    _require(
        not enabled or not _is_video(cfg),
        "MODEL.MASK_FORMER.MASK_QUALITY.ENABLED is True, but it is for images, and MODEL.META_ARCHITECTURE is "
        f"'VideoMaskFormer': {remedy}",
    )
    _require(
        not enabled or _has_masked_attention(cfg),
        "MODEL.MASK_FORMER.MASK_QUALITY.ENABLED is True, but only MultiScaleMaskedTransformerDecoder predicts the "
        f"quality of masks, not {_decoder_and_head(cfg)}: {remedy}",
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
    _require(
        node.HIDDEN_DIM % 4 == 0,
        f"MODEL.MASK_FORMER.HIDDEN_DIM {node.HIDDEN_DIM} must be a multiple of 4, for positions",
    )
    deformable = head.PIXEL_DECODER_NAME == "MSDeformAttnPixelDecoder"
    _require(
        head.CONVS_DIM % 32 == 0 or not (deformable or head.NORM == "GN"),
        f"MODEL.SEM_SEG_HEAD.CONVS_DIM {head.CONVS_DIM} must be a multiple of 32, the groups of its norms",
    )
    _require(
        not deformable or head.CONVS_DIM % node.NHEADS == 0,
        f"MODEL.SEM_SEG_HEAD.CONVS_DIM {head.CONVS_DIM} must be a multiple of MODEL.MASK_FORMER.NHEADS {node.NHEADS}",
    )
    stride = head.COMMON_STRIDE
    _require(stride & (stride - 1) == 0, f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {stride} must be a power of 2, such as 4")
    for key in ("IN_FEATURES", "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"):
        _require(len(set(head[key])) == len(head[key]), f"MODEL.SEM_SEG_HEAD.{key} names a feature twice: {head[key]}")


def _validate_inference(cfg: CfgNode) -> None:
    """Reject settings of inference that do not fit together."""
    _require(
        bool(tasks_of(cfg)),
        f"MODEL.MASK_FORMER.TEST: turn on at least one of {', '.join(task.switch for task in IMAGE_TASKS)}",
    )
    tile = cfg.MODEL.MASK_FORMER.TEST.TILES.SIZE
    _require(
        tile == 0 or tile >= 16,
        f"MODEL.MASK_FORMER.TEST.TILES.SIZE is {tile}: set 0 (no tiles by themselves), or at least 16 pixels.",
    )
    _require(
        cfg.TEST.SEMANTIC_SCORES or not cfg.TEST.AUG.ENABLED,
        "TEST.AUG.ENABLED averages the scores of classes: set TEST.SEMANTIC_SCORES True.",
    )
    window = cfg.TEST.WINDOW_FRAMES
    _require(
        window == 0 or window > cfg.TEST.WINDOW_OVERLAP,
        f"TEST.WINDOW_OVERLAP must lie between 0 and TEST.WINDOW_FRAMES - 1 = {window - 1}",
    )


def _validate_backbone(cfg: CfgNode) -> None:
    """Reject settings of the selected backbone that do not fit together."""
    name, swin, resnet = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SWIN, cfg.MODEL.RESNETS
    if name == "D2SwinTransformer":
        _require(
            len(swin.DEPTHS) == len(swin.NUM_HEADS),
            f"MODEL.SWIN.DEPTHS {swin.DEPTHS} and MODEL.SWIN.NUM_HEADS {swin.NUM_HEADS} must have one entry per stage",
        )
        for stage, heads in enumerate(swin.NUM_HEADS):
            channels = swin.EMBED_DIM * 2**stage
            _require(
                channels % heads == 0,
                f"MODEL.SWIN.NUM_HEADS: {heads} heads do not divide the {channels} channels of stage {stage + 1}, "
                f"MODEL.SWIN.EMBED_DIM {swin.EMBED_DIM} times {2**stage}",
            )
    elif name in ("build_resnet_backbone", "build_resnet_deeplab_backbone"):
        _require(
            resnet.DEPTH in (18, 34, 50, 101, 152),
            f"MODEL.RESNETS.DEPTH is {resnet.DEPTH}, which does not exist. Known: 18, 34, 50, 101, 152",
        )
        dilations = (resnet.RES4_DILATION, resnet.RES5_DILATION)
        _require(
            dilations in (((1, 1), (1, 2), (1, 4), (2, 4)) if "deeplab" in name else ((1, 1), (1, 2))),
            f"MODEL.BACKBONE.NAME '{name}' has no MODEL.RESNETS.RES4_DILATION {dilations[0]} with RES5_DILATION "
            f"{dilations[1]}: set 1 and 1, or 1 and 2",
        )
        for key, value in (("RES2_OUT_CHANNELS", 64), ("NUM_GROUPS", 1), ("RES5_DILATION", 1)):
            _require(
                resnet.DEPTH > 34 or resnet[key] == value,
                f"MODEL.RESNETS.DEPTH {resnet.DEPTH} needs MODEL.RESNETS.{key} {value}, not {resnet[key]}",
            )


def _validate_training(cfg: CfgNode) -> None:
    # The number of ranks matters only after SOLVER.REFERENCE_WORLD_SIZE has scaled the batch.
    micro_batch_size(cfg, ranks=1)
    batch, world = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    _require(
        world == 0 or batch % world == 0,
        f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of SOLVER.REFERENCE_WORLD_SIZE {world} (0: the batch is not "
        "scaled with the number of ranks)",
    )
    _require(
        not (world and cfg.SOLVER.REFERENCE_BATCH),
        "SOLVER.REFERENCE_BATCH and SOLVER.REFERENCE_WORLD_SIZE both scale SOLVER.BASE_LR with the batch: set one "
        "of them to 0",
    )
    warmup, iterations = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    _require(
        warmup < iterations or warmup <= 0,
        f"SOLVER.WARMUP_ITERS is {warmup}, but the training ends after SOLVER.MAX_ITER {iterations} iterations: it "
        f"would never leave the warm-up. Add SOLVER.WARMUP_ITERS {iterations // 10} to the command or the config, or "
        "train longer.",
    )
    _require(len(cfg.DATASETS.TRAIN) > 0, "DATASETS.TRAIN is empty: set at least one dataset")
    _validate_schedule(cfg)


def _validate_schedule(cfg: CfgNode) -> None:
    """Reject settings of optimizer and schedule that do not fit together."""
    solver = cfg.SOLVER
    steps = list(solver.STEPS)
    _require(
        steps == sorted(set(steps)),
        f"SOLVER.STEPS {steps} must increase: the iterations at which the learning rate is multiplied by SOLVER.GAMMA",
    )
    _require(
        solver.LR_SCHEDULER_NAME != "WarmupCosineLR" or solver.BASE_LR_END <= solver.BASE_LR,
        f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must be at most SOLVER.BASE_LR {solver.BASE_LR}",
    )
    _require(
        not solver.NESTEROV or solver.OPTIMIZER.upper() != "SGD" or solver.MOMENTUM > 0,
        "SOLVER.NESTEROV needs SOLVER.MOMENTUM above 0",
    )
    clip = solver.CLIP_GRADIENTS
    _require(
        not clip.ENABLED or clip.CLIP_TYPE == "full_model" or clip.CLIP_VALUE > 0,
        f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0 with CLIP_TYPE '{clip.CLIP_TYPE}' removes all gradients: set it above 0",
    )


def _validate_augmentation(cfg: CfgNode) -> None:
    """Reject settings of INPUT that do not fit together, or that the selected mapper does not have."""
    node, crop = cfg.INPUT, cfg.INPUT.CROP
    video = _is_video(cfg)
    _require(
        node.MIN_SCALE <= node.MAX_SCALE,
        f"INPUT.MIN_SCALE {node.MIN_SCALE} must be at most INPUT.MAX_SCALE {node.MAX_SCALE}",
    )
    _require(
        not node.MIN_SIZE_TRAIN_SAMPLING.startswith("range") or len(node.MIN_SIZE_TRAIN) == 2,
        f"INPUT.MIN_SIZE_TRAIN_SAMPLING '{node.MIN_SIZE_TRAIN_SAMPLING}' needs the smallest and the largest shortest "
        f"edge, but INPUT.MIN_SIZE_TRAIN is {tuple(node.MIN_SIZE_TRAIN)}",
    )
    _require(
        not node.MIN_SIZE_TRAIN_SAMPLING.startswith("range") or node.MIN_SIZE_TRAIN[0] <= node.MIN_SIZE_TRAIN[-1],
        f"INPUT.MIN_SIZE_TRAIN {tuple(node.MIN_SIZE_TRAIN)} must begin with the smallest shortest edge",
    )
    for key, value in (
        ("MIN_SIZE_TRAIN_SAMPLING", node.MIN_SIZE_TRAIN_SAMPLING),
        ("RANDOM_FLIP", node.RANDOM_FLIP),
        ("CROP.TYPE", crop.TYPE),
    ):
        _require(
            video or not value.endswith("_by_clip") or not _has_own_model(cfg),
            f"INPUT.{key} is '{value}', which only clips have; MODEL.META_ARCHITECTURE is not 'VideoMaskFormer'",
        )
    relative = crop.TYPE.startswith("relative")
    fits = not crop.ENABLED or all(size <= 1 if relative else size == int(size) for size in crop.SIZE)
    unit = "fractions of the image, at most 1 (pixels need INPUT.CROP.TYPE 'absolute')" if relative else "whole pixels"
    _require(fits, f"INPUT.CROP.SIZE is {list(crop.SIZE)}, but INPUT.CROP.TYPE '{crop.TYPE}' takes {unit}")


def _validate_mapper_options(cfg: CfgNode) -> None:
    """Reject augmentations that the selected mapper of this package would leave out."""
    node, mapper = cfg.INPUT, cfg.INPUT.DATASET_MAPPER_NAME
    paste = node.COPY_PASTE
    _require(
        paste.MIN_SCALE <= paste.MAX_SCALE,
        f"INPUT.COPY_PASTE.MIN_SCALE {paste.MIN_SCALE} must be at most INPUT.COPY_PASTE.MAX_SCALE {paste.MAX_SCALE}",
    )
    if not _has_own_mapper(cfg):
        return
    clips = "clips have no such augmentation"
    instances = "only 'coco_instance_lsj' and 'mask_former_instance' have it"
    has_objects = mapper in ("coco_instance_lsj", "mask_former_instance")
    for key, value, off, possible, reason in (
        ("STAIN_AUG.PROB", node.STAIN_AUG.PROB, 0, not _is_video(cfg), clips),
        *(
            (
                f"INTENSITY_AUG.{key}",
                node.INTENSITY_AUG[key],
                int(key in ("GAMMA", "BRIGHTNESS")),
                not _is_video(cfg),
                clips,
            )
            for key in node.INTENSITY_AUG
        ),
        ("EMPTY_PROB", node.EMPTY_PROB, 0, has_objects, instances),
        ("COPY_PASTE.PROB", paste.PROB, 0, has_objects, instances),
    ):
        _require(
            value == off or possible,
            f"INPUT.{key} is {value}, but with INPUT.DATASET_MAPPER_NAME '{mapper}' it has no effect ({reason}): "
            f"set INPUT.{key} {off}",
        )


def _validate_datasets(cfg: CfgNode, split: str, names: Sequence[str]) -> None:
    for name in names:
        known = list(DatasetCatalog)
        _require(
            name in known,
            f"DATASETS.{split} names '{name}', which is not registered.{did_you_mean(name, known, 3)} "
            "Register a custom dataset with DATASETS.COCO_JSON: [[name, file.json, image directory]], "
            "DATASETS.COCO_PANOPTIC, DATASETS.SEMANTIC_FOLDER or, for videos, DATASETS.YTVIS_JSON.",
        )
        if not _has_own_model(cfg) or (split == "TRAIN" and not _has_own_mapper(cfg)):
            continue  # how images and classes of this dataset are used is not known
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
    video = _is_video(cfg)
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
