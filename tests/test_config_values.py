"""The table of config values: what cannot work is an error with the key, and the defaults and recipes pass."""

from __future__ import annotations

from typing import Any

import pytest

from mask2former.config import leaves, load_config
from mask2former.config_validation import validate_config
from mask2former.config_values import MODEL_RULES, TRAINING_RULES, check_values
from mask2former.errors import ConfigError

RULES = MODEL_RULES | TRAINING_RULES
DEFAULTS = dict(leaves(load_config()))
INSTANCES = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
SWIN = "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"
# Of each type; none of them is a value of any key of that type.
WRONG: dict[type, list[Any]] = {
    int: [-(2**40), 2**40, 1.5, "x", None, True, [1]],
    float: [-1e30, 1e30, float("nan"), "x", None, True, [1.0]],
    bool: [1, "True", None],
    str: [3, None, ["x"]],
    list: ["x", None, 3, [None], [[]], [float("nan")]],
}
FREE = {"SOLVER.CLIP_GRADIENTS.NORM_TYPE": 1e30, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1e30}


def test_the_table_names_keys_that_exist() -> None:
    assert set(RULES) <= set(DEFAULTS)
    for key, rule in RULES.items():
        assert rule(DEFAULTS[key]) is None, key


@pytest.mark.parametrize("key", RULES)
def test_wrong_values_name_the_key(key: str) -> None:
    default = DEFAULTS[key]
    kind = list if isinstance(default, tuple) else float if default is None else type(default)
    for value in WRONG[kind]:
        if FREE.get(key) == value or (value is None and default is None):
            continue
        cfg = load_config()
        section, name = key.rpartition(".")[::2]
        node = cfg
        for part in section.split(".") if section else ():
            node = node[part]
        node[name] = value
        with pytest.raises(ConfigError, match=rf"^{key} is "):
            check_values(cfg, training=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["INPUT.MAX_SCALE", "-1.0"], "INPUT.MAX_SCALE is -1.0, but must be a number above 0"),
        (["INPUT.MIN_SCALE", "3.0"], "INPUT.MIN_SCALE 3.0 must be at most INPUT.MAX_SCALE 2.0"),
        (["MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", "-0.1"], "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT is -0.1"),
        (["MODEL.PIXEL_STD", "[58.0, 0.0, 57.0]"], "MODEL.PIXEL_STD is .* each must be a number above 0"),
        (["MODEL.PIXEL_MEAN", "[0.5, 0.5]"], "MODEL.PIXEL_MEAN is .* exactly 3 entries"),
        (["SOLVER.BASE_LR", "1e30"], "SOLVER.BASE_LR is 1e.30"),
        (["TEST.DETECTIONS_PER_IMAGE", "-1"], "TEST.DETECTIONS_PER_IMAGE is -1, but must be an integer of at least 1"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0"),
        (["INPUT.IMAGE_SIZE", "0"], "INPUT.IMAGE_SIZE is 0"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu', but must be 'cpu', 'cuda'"),
        (["MODEL.DEVICE", "meta"], "MODEL.DEVICE is 'meta'"),
        (["MODEL.RESNETS.NORM", "x"], "MODEL.RESNETS.NORM is 'x', but must be one of"),
        (["MODEL.SEM_SEG_HEAD.NORM", "BatchNorm"], "MODEL.SEM_SEG_HEAD.NORM is 'BatchNorm'"),
        (["MODEL.MASK_FORMER.NHEADS", "0"], "MODEL.MASK_FORMER.NHEADS is 0"),
        (["MODEL.MASK_FORMER.HIDDEN_DIM", "250"], "MODEL.MASK_FORMER.HIDDEN_DIM 250 must be a multiple of NHEADS 8"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", "100"], "MODEL.SEM_SEG_HEAD.CONVS_DIM 100 must be a multiple of 32"),
        (["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "3"], "COMMON_STRIDE 3 must be a power of 2"),
        (["MODEL.RESNETS.RES5_DILATION", "4"], "MODEL.RESNETS.RES4_DILATION 1 with RES5_DILATION 4"),
        (["MODEL.RESNETS.DEPTH", "18"], "MODEL.RESNETS.DEPTH 18 needs MODEL.RESNETS.RES2_OUT_CHANNELS 64"),
        (["MODEL.RESNETS.DEPTH", "51"], "MODEL.RESNETS.DEPTH is 51"),
        (
            ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[48, 48]"],
            "INPUT.CROP.SIZE is .*CROP.TYPE 'absolute'",
        ),
        (
            ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[0.5, 0.5]", "INPUT.CROP.TYPE", "absolute"],
            "INPUT.CROP.SIZE is .*whole pixels",
        ),
        (["INPUT.STAIN_AUG.PROB", "1.5"], "INPUT.STAIN_AUG.PROB is 1.5, .* at most 1"),
        (["INPUT.INTENSITY_AUG.GAMMA", "0.5"], "INPUT.INTENSITY_AUG.GAMMA is 0.5, .* at least 1"),
        (["INPUT.COPY_PASTE.SOURCE", "others"], "INPUT.COPY_PASTE.SOURCE is 'others'.*Did you mean 'other'"),
        (["INPUT.COPY_PASTE.MIN_SCALE", "2.0"], "COPY_PASTE.MIN_SCALE 2.0 must be at most INPUT.COPY_PASTE.MAX_SCALE"),
        (
            ["INPUT.EMPTY_PROB", "0.1", "INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj"],
            "INPUT.EMPTY_PROB is 0.1, but with .*'coco_panoptic_lsj' it has no effect .*set INPUT.EMPTY_PROB 0",
        ),
        (
            ["INPUT.COPY_PASTE.PROB", "0.1", "INPUT.DATASET_MAPPER_NAME", "mask_former_semantic"],
            "INPUT.COPY_PASTE.PROB is 0.1, but",
        ),
        (["INPUT.AUGMENTATIONS", "['rotate']"], "INPUT.AUGMENTATIONS is .*'rotation'"),
        (["TEST.EXPECTED_RESULTS", "[['segm', 'AP', 40]]"], "TEST.EXPECTED_RESULTS is .*tolerance"),
        (["INPUT.MIN_SIZE_TRAIN", "()"], "INPUT.MIN_SIZE_TRAIN is .* at least 1 entry"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' needs"),
        (["INPUT.RANDOM_FLIP", "flip_by_clip"], "INPUT.RANDOM_FLIP is 'flip_by_clip', which only clips have"),
        (["INPUT.CROP.TYPE", "absolute_by_clip"], "INPUT.CROP.TYPE is 'absolute_by_clip', which only clips have"),
        (["SOLVER.STEPS", "(30, 20)"], "SOLVER.STEPS .* must increase"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupPoly"], "Did you mean 'WarmupPolyLR'"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "1.0"], "SOLVER.BASE_LR_END 1.0 must be"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorSampler"], "Did you mean 'RepeatFactorTrainingSampler'"),
        (["DATALOADER.NUM_WORKERS", "-1"], "DATALOADER.NUM_WORKERS is -1"),
        (
            ["TEST.SCORE_THRESHOLD", "1.5"],
            "TEST.SCORE_THRESHOLD is 1.5, .* number of at least 0 and at most 1",
        ),
        (["MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "-0.5"], "OVERLAP_THRESHOLD is -0.5"),
        (["TEST.AMP", "bf16"], "TEST.AMP is 'bf16', but must be one of 'off', 'auto', 'bfloat16', 'float16'"),
        (["TEST.INSTANCE_TASKS", "['mask']"], "TEST.INSTANCE_TASKS is .*'segm'"),
        (["SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0.0"], "NESTEROV needs SOLVER.MOM"),
        (
            ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"],
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0 .*removes all gradients",
        ),
    ],
)
def test_impossible_values_are_found_before_training(overrides: list[str], message: str) -> None:
    cfg = load_config(INSTANCES, ["INPUT.MAX_SCALE", "2.0", *overrides])
    with pytest.raises(ConfigError, match=message):
        validate_config(cfg, training=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_HEADS", "[3, 6, 12]", "one entry per stage"),
        ("NUM_HEADS", "[3, 5, 12, 24]", "5 heads do not divide the 192 channels of stage 2"),
        ("OUT_FEATURES", "['p2']", "must have entries"),
    ],
)
def test_settings_of_swin(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"MODEL\.SWIN\.{key}.*{message}"):
        validate_config(load_config(SWIN, [f"MODEL.SWIN.{key}", value]), training=False)


def test_an_evaluation_takes_no_look_at_the_training() -> None:
    cfg = load_config(INSTANCES, ["SOLVER.MAX_ITER", "0", "INPUT.IMAGE_SIZE", "0"])
    validate_config(cfg, training=False)


def test_values_of_other_projects() -> None:
    cfg = load_config()
    cfg.SOLVER.LOOKAHEAD = None
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = float("inf")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "sgd", 1
    check_values(cfg, training=True)
