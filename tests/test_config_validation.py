"""Settings that cannot work are errors that name key and remedy, before the first iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from torch import nn

from mask2former.config import load_config
from mask2former.config_validation import check_mapper_name, config_warnings, validate_config
from mask2former.errors import ConfigError

PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
MASKFORMER = "ade20k/semantic-segmentation/maskformer/maskformer_R50_bs16_160k.yaml"
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
PER_PIXEL = "ade20k/semantic-segmentation/maskformer/per_pixel_baseline_R50_bs16_160k.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "not a model of this package"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 80], "MODEL.SEM_SEG_HEAD.NUM_CLASSES 133"),
        (["DATASETS.TRAIN", ("coco_2017_train_panoptik",)], "coco_2017_train_panoptic"),
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty"),
        (["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnDecoder"], "MSDeformAttnPixelDecoder"),
        (["MODEL.BACKBONE.NAME", "D2Swin"], "D2SwinTransformer"),
        (["MODEL.MASK_FORMER.NHEADS", 7], "HIDDEN_DIM"),
        (["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", 4], "MASK_FORMER.NHEADS"),
        (["SOLVER.ACCUMULATION_STEPS", 3], "ACCUMULATION_STEPS"),
        (["SOLVER.OPTIMIZER", "ADAM"], "ADAMW"),
        (["SOLVER.REFERENCE_WORLD_SIZE", 3], "multiple of SOLVER.REFERENCE_WORLD_SIZE 3"),
        (["SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.REFERENCE_BATCH", 16], "both scale SOLVER.BASE_LR"),
        (["SOLVER.AMP.DTYPE", "bf16"], "bfloat16"),
        (["SOLVER.MAX_ITER", 20, "SOLVER.WARMUP_ITERS", 1000], "MAX_ITER 20 .*Add SOLVER.WARMUP_ITERS 2 "),
        (["SOLVER.MAX_ITER", 10], "SOLVER.WARMUP_ITERS is 10, .*Add SOLVER.WARMUP_ITERS 1 "),
        (["SOLVER.MAX_ITER", 4], "Add SOLVER.WARMUP_ITERS 0 "),
        (["LOGGERS", ["tensorbord"]], "LOGGERS is .*tensorbord.*Did you mean 'tensorboard'"),
        (["TEST.PREVIEW_IMAGES", -1], "TEST.PREVIEW_IMAGES"),
    ],
)
def test_contradictions_are_found_before_training(overrides: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.").replace(r"\.*", ".*")):
        validate_config(load_config(PANOPTIC, overrides), training=True)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (MASKFORMER, ["MODEL.MASK_FORMER.QUERY_GROUPS", 2], r"QUERY_GROUPS is 2, .*StandardTrans.*QUERY_GROUPS 1\."),
        (
            MASKFORMER,
            ["MODEL.MASK_FORMER.DENOISING.QUERIES", 50],
            r"DENOISING\.QUERIES is 50, .*DENOISING\.QUERIES 0\.",
        ),
        (PER_PIXEL, ["MODEL.MASK_FORMER.QUERY_GROUPS", 2], "with MODEL.SEM_SEG_HEAD.NAME 'PerPixelBaselineHead'"),
        (PANOPTIC, ["MODEL.MASK_FORMER.DENOISING.QUERIES", 5, "MODEL.MASK_FORMER.DEC_LAYERS", 1], "DEC_LAYERS to 2"),
        (
            MASKFORMER,
            ["MODEL.MASK_FORMER.QUERY_SELECTION", True],
            r"QUERY_SELECTION is True, .*StandardTrans.*QUERY_SELECTION False\.",
        ),
        (PER_PIXEL, ["MODEL.MASK_FORMER.QUERY_SELECTION", True], "with MODEL.SEM_SEG_HEAD.NAME 'PerPixelBaselineHead'"),
        (PANOPTIC, ["MODEL.MASK_FORMER.QUERY_GROUPS", 0], "QUERY_GROUPS is 0"),
        (PANOPTIC, ["MODEL.MASK_FORMER.DENOISING.LABEL_NOISE", 1.5], "LABEL_NOISE is 1.5"),
        (PANOPTIC, ["MODEL.MASK_FORMER.DENOISING.MASK_NOISE", -0.1], "MASK_NOISE is -0.1"),
        (VIDEO, ["MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True], r"MASK_QUALITY.*for images.*ENABLED False\."),
        (MASKFORMER, ["MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True], r"MASK_QUALITY.*StandardTrans.*ENABLED False\."),
        (PER_PIXEL, ["MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True], "with MODEL.SEM_SEG_HEAD.NAME 'PerPixelBaselin"),
        (PANOPTIC, ["MODEL.MASK_FORMER.MASK_QUALITY.POWER", -1.0], "POWER is -1.0"),
        (PANOPTIC, ["MODEL.MASK_FORMER.SMALL_OBJECT_POINTS", 1.5], "SMALL_OBJECT_POINTS is 1.5"),
    ],
)
def test_options_of_training_that_a_model_does_not_have(config: str, overrides: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(load_config(config, overrides), training=True)


@pytest.mark.parametrize("config", [PANOPTIC, VIDEO])
def test_options_of_training_that_a_model_has(config: str) -> None:
    overrides = ["MODEL.MASK_FORMER.DENOISING.QUERIES", 100, "MODEL.MASK_FORMER.QUERY_GROUPS", 4]
    overrides += ["MODEL.MASK_FORMER.QUERY_SELECTION", True]
    overrides += ["MODEL.MASK_FORMER.SMALL_OBJECT_POINTS", 0.5]
    overrides += ["MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", config == PANOPTIC]
    validate_config(load_config(config, overrides), training=True)


def test_warm_up_of_a_short_training() -> None:
    """An error ends with a setting that is accepted; a warm-up of more than half the training is a warning."""
    for iterations in (1, 4, 11, 20):
        cfg = load_config(PANOPTIC, ["SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", iterations // 10])
        validate_config(cfg, training=True)
        assert config_warnings(cfg) == []
    validate_config(load_config(PANOPTIC, ["SOLVER.MAX_ITER", 4]), training=False)  # an evaluation has none
    (text,) = config_warnings(load_config(PANOPTIC, ["SOLVER.MAX_ITER", 19]))
    assert "SOLVER.WARMUP_ITERS 10" in text and "SOLVER.MAX_ITER 19" in text and "SOLVER.WARMUP_ITERS 1." in text


def test_no_task_switched_on() -> None:
    overrides = [x for n in ("SEMANTIC", "INSTANCE", "PANOPTIC") for x in (f"MODEL.MASK_FORMER.TEST.{n}_ON", False)]
    with pytest.raises(ConfigError, match="at least one"):
        validate_config(load_config(PANOPTIC, overrides), training=False)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (PER_PIXEL, ["MODEL.META_ARCHITECTURE", "MaskFormer"], "MODEL.META_ARCHITECTURE 'SemanticSegmentor'"),
        (PER_PIXEL, ["MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead"], "MODEL.META_ARCHITECTURE 'MaskFormer'"),
        (PANOPTIC, ["TEST.AUG.ENABLED", True, "TEST.SEMANTIC_SCORES", False], "set TEST.SEMANTIC_SCORES True"),
        (PER_PIXEL, ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", True], "INSTANCE_ON and PANOPTIC_ON to False"),
        (PER_PIXEL, ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0], "MODEL.SEM_SEG_HEAD.IGNORE_VALUE 255"),
        (PANOPTIC, ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"], "'multi_scale_pixel_decoder'"),
        (
            MASKFORMER,
            ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder"],
            "'TransformerEncoderPixelDecoder'",
        ),
    ],
)
def test_components_that_do_not_fit_together(config: str, overrides: list, message: str) -> None:
    validate_config(load_config(config), training=True)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        validate_config(load_config(config, overrides), training=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "MaskFormer"], "DATASETS.TRAIN names 'clips_{}', which holds videos: set MODEL"),
        (["DATASETS.TEST", ("coco_2017_val",)], "DATASETS.TEST names 'coco_2017_val', which holds images"),
        (["DATASETS.TRAIN", ("coco_2017_train",)], "INPUT.DATASET_MAPPER_NAME 'coco_clip', or 'mixed_clips' beside"),
        (["INPUT.DATASET_MAPPER_NAME", "coco_clip"], "generates clips from images: set 'ytvis'"),
        (["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True], "MODEL.MASK_FORMER.TEST.SEMANTIC_ON and PANOPTIC_ON to False"),
        (["TEST.DETECTIONS_PER_VIDEO", 0], "TEST.DETECTIONS_PER_VIDEO is 0, but must be an integer of at least 1"),
        (["TEST.WINDOW_FRAMES", -1], "TEST.WINDOW_FRAMES is -1, but must be an integer of at least 0"),
        (["TEST.WINDOW_FRAMES", 6], "TEST.WINDOW_OVERLAP must lie between 0 and TEST.WINDOW_FRAMES - 1 = 5"),
    ],
)
def test_videos_and_images_are_not_mixed_up(overrides: list, message: str, tmp_path: Path) -> None:
    name = f"clips_{tmp_path.name}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(evaluator_type="ytvis", thing_classes=["thing"] * 40)
    videos = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
    try:
        validate_config(load_config(VIDEO, videos), training=True)
        # A video model may train on images, as clips generated from them.
        images = ["DATASETS.TRAIN", ("coco_2017_train",), "DATASETS.TEST", (), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 80]
        mixed = ["INPUT.DATASET_MAPPER_NAME", "mixed_clips"]
        for mapper in (["INPUT.DATASET_MAPPER_NAME", "coco_clip"], mixed):
            validate_config(load_config(VIDEO, [*images, *mapper]), training=True)
        validate_config(load_config(VIDEO, [*videos, *mixed]), training=True)
        with pytest.raises(ConfigError, match=message.format(tmp_path.name).replace(".", r"\.")):
            validate_config(load_config(VIDEO, [*videos, *overrides]), training=True)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("key", "value"),
    [("INSTANCES.NMS_IOU", 1.5), ("INSTANCES.COMPONENTS", "any"), ("TILES.SIZE", 7), ("TILES.OVERLAP", 0.95)],
)
def test_rules_of_objects_and_tiles_are_checked_before_training(key: str, value: Any) -> None:
    cfg = load_config("coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml")
    cfg.merge_from_list([f"MODEL.MASK_FORMER.TEST.{key}", value])
    with pytest.raises(ConfigError, match=key.split(".")[0]):
        validate_config(cfg, training=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [("STAIN_AUG.PROB", 0.5), ("INTENSITY_AUG.GAMMA", 2.0), ("INTENSITY_AUG.NOISE", 0.1), ("COPY_PASTE.PROB", 0.2)],
)
def test_clips_have_no_augmentation_of_microscopy(key: str, value: float) -> None:
    cfg = load_config(VIDEO, [f"INPUT.{key}", value])
    with pytest.raises(ConfigError, match=rf"INPUT\.{key} is {value}, but with .* it has no effect .*set INPUT\.{key}"):
        validate_config(cfg, training=True)
    validate_config(cfg, training=False)  # an evaluation does not read it


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (PANOPTIC, "coco_panoptic_ljs", "Did you mean 'coco_panoptic_lsj'"),
        (VIDEO, "coco_instance_lsj", "Known: coco_clip, mask_former_semantic, mixed"),
    ],
)
def test_a_mapper_is_checked_where_it_is_to_be_built(config: str, name: str, message: str) -> None:
    cfg = load_config(config, ["INPUT.DATASET_MAPPER_NAME", name])
    with pytest.raises(ConfigError, match=message):
        check_mapper_name(cfg)
    # A trainer may build its own loader, with datasets whose classes its mapper changes.
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.DATASETS.TEST = 3, ()
    validate_config(cfg, training=True)


def test_components_of_other_projects_may_read_the_keys_in_their_own_way() -> None:
    class ForeignArchitecture(nn.Module):
        pass

    class ForeignHead(nn.Module):
        pass

    overrides: list[Any] = [
        *("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "of its own registry", "MODEL.MASK_FORMER.NHEADS", 7),
        *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "none", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7),
        *("DATASETS.TRAIN", ("coco_2017_train",), "DATASETS.TEST", ("coco_2017_val",)),
    ]
    META_ARCH_REGISTRY.register(ForeignArchitecture)
    SEM_SEG_HEADS_REGISTRY.register(ForeignHead)
    try:
        names = ["MODEL.META_ARCHITECTURE", "ForeignArchitecture", "MODEL.SEM_SEG_HEAD.NAME", "ForeignHead"]
        validate_config(load_config(PANOPTIC, [*overrides, *names]), training=True)
        cfg = load_config(PANOPTIC, [*overrides, "MODEL.SEM_SEG_HEAD.NAME", "ForeignHead"])
        with pytest.raises(ConfigError, match="NUM_CLASSES is 7"):
            validate_config(cfg, training=True)  # our own model
        cfg = load_config(PANOPTIC, [*overrides, "MODEL.META_ARCHITECTURE", "ForeignArchitecture"])
        with pytest.raises(ConfigError, match="PIXEL_DECODER_NAME is 'none'"):
            validate_config(cfg, training=True)  # our own head
    finally:
        del META_ARCH_REGISTRY._obj_map["ForeignArchitecture"], SEM_SEG_HEADS_REGISTRY._obj_map["ForeignHead"]
