"""Checks that reject a wrong setting before the first iteration.

Only what this package builds is checked: a meta-architecture, head or mapper of another project may read the same keys
in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .config import micro_batch_size
from .config_values import check_values
from .data import mapper_names
from .model_validation import PER_PIXEL_HEADS, has_own_model, is_video, one_of, require, validate_model
from .structures.task import IMAGE_TASKS, tasks_of
from .utils.hints import did_you_mean


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
    validate_model(cfg)
    if has_own_model(cfg):
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


def check_mapper_name(cfg: CfgNode) -> None:
    """Check INPUT.DATASET_MAPPER_NAME, where `mask2former.data.build_train_loader` is to build the mapper.

    Raises:
        ConfigError: there is no such mapper.
    """
    names = mapper_names(is_video(cfg))
    one_of("INPUT.DATASET_MAPPER_NAME", cfg.INPUT.DATASET_MAPPER_NAME, names)


def _has_own_mapper(cfg: CfgNode) -> bool:
    return cfg.INPUT.DATASET_MAPPER_NAME in mapper_names(is_video(cfg))


def _validate_inference(cfg: CfgNode) -> None:
    """Reject settings of inference that do not fit together."""
    require(
        bool(tasks_of(cfg)),
        f"MODEL.MASK_FORMER.TEST: turn on at least one of {', '.join(task.switch for task in IMAGE_TASKS)}",
    )
    tile = cfg.MODEL.MASK_FORMER.TEST.TILES.SIZE
    require(
        tile == 0 or tile >= 16,
        f"MODEL.MASK_FORMER.TEST.TILES.SIZE is {tile}: set 0 (no tiles by themselves), or at least 16 pixels.",
    )
    require(
        cfg.TEST.SEMANTIC_SCORES or not cfg.TEST.AUG.ENABLED,
        "TEST.AUG.ENABLED averages the scores of classes: set TEST.SEMANTIC_SCORES True.",
    )
    window = cfg.TEST.WINDOW_FRAMES
    require(
        window == 0 or window > cfg.TEST.WINDOW_OVERLAP,
        f"TEST.WINDOW_OVERLAP must lie between 0 and TEST.WINDOW_FRAMES - 1 = {window - 1}",
    )


def _validate_training(cfg: CfgNode) -> None:
    # The number of ranks matters only after SOLVER.REFERENCE_WORLD_SIZE has scaled the batch.
    micro_batch_size(cfg, ranks=1)
    batch, world = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    require(
        world == 0 or batch % world == 0,
        f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of SOLVER.REFERENCE_WORLD_SIZE {world} (0: the batch is not "
        "scaled with the number of ranks)",
    )
    require(
        not (world and cfg.SOLVER.REFERENCE_BATCH),
        "SOLVER.REFERENCE_BATCH and SOLVER.REFERENCE_WORLD_SIZE both scale SOLVER.BASE_LR with the batch: set one "
        "of them to 0",
    )
    warmup, iterations = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    require(
        warmup < iterations or warmup <= 0,
        f"SOLVER.WARMUP_ITERS is {warmup}, but the training ends after SOLVER.MAX_ITER {iterations} iterations: it "
        f"would never leave the warm-up. Add SOLVER.WARMUP_ITERS {iterations // 10} to the command or the config, or "
        "train longer.",
    )
    require(len(cfg.DATASETS.TRAIN) > 0, "DATASETS.TRAIN is empty: set at least one dataset")
    _validate_schedule(cfg)


def _validate_schedule(cfg: CfgNode) -> None:
    """Reject settings of optimizer and schedule that do not fit together."""
    solver = cfg.SOLVER
    steps = list(solver.STEPS)
    require(
        steps == sorted(set(steps)),
        f"SOLVER.STEPS {steps} must increase: the iterations at which the learning rate is multiplied by SOLVER.GAMMA",
    )
    require(
        solver.LR_SCHEDULER_NAME != "WarmupCosineLR" or solver.BASE_LR_END <= solver.BASE_LR,
        f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must be at most SOLVER.BASE_LR {solver.BASE_LR}",
    )
    require(
        not solver.NESTEROV or solver.OPTIMIZER.upper() != "SGD" or solver.MOMENTUM > 0,
        "SOLVER.NESTEROV needs SOLVER.MOMENTUM above 0",
    )
    clip = solver.CLIP_GRADIENTS
    require(
        not clip.ENABLED or clip.CLIP_TYPE == "full_model" or clip.CLIP_VALUE > 0,
        f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0 with CLIP_TYPE '{clip.CLIP_TYPE}' removes all gradients: set it above 0",
    )


def _validate_augmentation(cfg: CfgNode) -> None:
    """Reject settings of INPUT that do not fit together, or that the selected mapper does not have."""
    node, crop = cfg.INPUT, cfg.INPUT.CROP
    video = is_video(cfg)
    require(
        node.MIN_SCALE <= node.MAX_SCALE,
        f"INPUT.MIN_SCALE {node.MIN_SCALE} must be at most INPUT.MAX_SCALE {node.MAX_SCALE}",
    )
    require(
        not node.MIN_SIZE_TRAIN_SAMPLING.startswith("range") or len(node.MIN_SIZE_TRAIN) == 2,
        f"INPUT.MIN_SIZE_TRAIN_SAMPLING '{node.MIN_SIZE_TRAIN_SAMPLING}' needs the smallest and the largest shortest "
        f"edge, but INPUT.MIN_SIZE_TRAIN is {tuple(node.MIN_SIZE_TRAIN)}",
    )
    require(
        not node.MIN_SIZE_TRAIN_SAMPLING.startswith("range") or node.MIN_SIZE_TRAIN[0] <= node.MIN_SIZE_TRAIN[-1],
        f"INPUT.MIN_SIZE_TRAIN {tuple(node.MIN_SIZE_TRAIN)} must begin with the smallest shortest edge",
    )
    for key, value in (
        ("MIN_SIZE_TRAIN_SAMPLING", node.MIN_SIZE_TRAIN_SAMPLING),
        ("RANDOM_FLIP", node.RANDOM_FLIP),
        ("CROP.TYPE", crop.TYPE),
    ):
        require(
            video or not value.endswith("_by_clip") or not has_own_model(cfg),
            f"INPUT.{key} is '{value}', which only clips have; MODEL.META_ARCHITECTURE is not 'VideoMaskFormer'",
        )
    relative = crop.TYPE.startswith("relative")
    fits = not crop.ENABLED or all(size <= 1 if relative else size == int(size) for size in crop.SIZE)
    unit = "fractions of the image, at most 1 (pixels need INPUT.CROP.TYPE 'absolute')" if relative else "whole pixels"
    require(fits, f"INPUT.CROP.SIZE is {list(crop.SIZE)}, but INPUT.CROP.TYPE '{crop.TYPE}' takes {unit}")


def _validate_mapper_options(cfg: CfgNode) -> None:
    """Reject augmentations that the selected mapper of this package would leave out."""
    node, mapper = cfg.INPUT, cfg.INPUT.DATASET_MAPPER_NAME
    paste = node.COPY_PASTE
    require(
        paste.MIN_SCALE <= paste.MAX_SCALE,
        f"INPUT.COPY_PASTE.MIN_SCALE {paste.MIN_SCALE} must be at most INPUT.COPY_PASTE.MAX_SCALE {paste.MAX_SCALE}",
    )
    if not _has_own_mapper(cfg):
        return
    clips = "clips have no such augmentation"
    instances = "only 'coco_instance_lsj' and 'mask_former_instance' have it"
    has_objects = mapper in ("coco_instance_lsj", "mask_former_instance")
    for key, value, off, possible, reason in (
        ("STAIN_AUG.PROB", node.STAIN_AUG.PROB, 0, not is_video(cfg), clips),
        *(
            (
                f"INTENSITY_AUG.{key}",
                node.INTENSITY_AUG[key],
                int(key in ("GAMMA", "BRIGHTNESS")),
                not is_video(cfg),
                clips,
            )
            for key in node.INTENSITY_AUG
        ),
        ("EMPTY_PROB", node.EMPTY_PROB, 0, has_objects, instances),
        ("COPY_PASTE.PROB", paste.PROB, 0, has_objects, instances),
    ):
        require(
            value == off or possible,
            f"INPUT.{key} is {value}, but with INPUT.DATASET_MAPPER_NAME '{mapper}' it has no effect ({reason}): "
            f"set INPUT.{key} {off}",
        )


def _validate_datasets(cfg: CfgNode, split: str, names: Sequence[str]) -> None:
    for name in names:
        known = list(DatasetCatalog)
        require(
            name in known,
            f"DATASETS.{split} names '{name}', which is not registered.{did_you_mean(name, known, 3)} "
            "Register a custom dataset with DATASETS.COCO_JSON: [[name, file.json, image directory]], "
            "DATASETS.COCO_PANOPTIC, DATASETS.SEMANTIC_FOLDER or, for videos, DATASETS.YTVIS_JSON.",
        )
        if not has_own_model(cfg) or (split == "TRAIN" and not _has_own_mapper(cfg)):
            continue  # how images and classes of this dataset are used is not known
        metadata = MetadataCatalog.get(name)
        _validate_frames(cfg, split, name, metadata.get("evaluator_type"))
        evaluator = metadata.get("evaluator_type", "coco")
        attribute = (
            "thing_classes" if evaluator in ("coco", "lvis", "ytvis", "cityscapes_instance") else "stuff_classes"
        )
        classes = metadata.get(attribute)
        count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        require(
            classes is None or len(classes) == count,
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {count}, but dataset '{name}' (DATASETS.{split}) has "
            f"{len(classes or ())} classes. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(classes or ())}.",
        )
        ignored = metadata.get("ignore_label", 255)
        require(
            cfg.MODEL.SEM_SEG_HEAD.NAME not in PER_PIXEL_HEADS or ignored == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}, but dataset '{name}' "
            f"(DATASETS.{split}) ignores label {ignored}. Set MODEL.SEM_SEG_HEAD.IGNORE_VALUE {ignored}.",
        )


def _validate_frames(cfg: CfgNode, split: str, name: str, evaluator: str | None) -> None:
    """Require the video model for videos, and a mapper that builds clips where it is trained on images."""
    video = is_video(cfg)
    mapper = cfg.INPUT.DATASET_MAPPER_NAME if split == "TRAIN" else ""
    require(
        video or evaluator != "ytvis",
        f"DATASETS.{split} names '{name}', which holds videos: set MODEL.META_ARCHITECTURE 'VideoMaskFormer' and "
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME 'VideoMultiScaleMaskedTransformerDecoder', or start from a file "
        "of configs/youtubevis_2019.",
    )
    require(
        not video or mapper in ("coco_clip", "mixed_clips") or evaluator in (None, "ytvis"),
        f"DATASETS.{split} names '{name}', which holds images, but MODEL.META_ARCHITECTURE is 'VideoMaskFormer'. "
        "Name videos, for example 'ytvis_2019_val'; or train on clips generated from images with "
        "INPUT.DATASET_MAPPER_NAME 'coco_clip', or 'mixed_clips' beside videos; or set MODEL.META_ARCHITECTURE "
        "'MaskFormer'.",
    )
    require(
        mapper != "coco_clip" or evaluator != "ytvis",
        f"DATASETS.{split} names '{name}', which holds videos, but INPUT.DATASET_MAPPER_NAME 'coco_clip' generates "
        "clips from images: set 'ytvis', or 'mixed_clips' for videos and images.",
    )
