"""The recipe of a fine-tuning, from facts alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former import zoo
from mask2former.config import load_config
from mask2former.config_validation import validate_config
from mask2former.engine.fine_tuning import load_base_model
from mask2former.engine.recipe import DataFacts, DeviceFacts, Recipe, Wishes, make_recipe
from mask2former.errors import ConfigError

GIB = 1 << 30
DATA = DataFacts(
    classes=("nucleus",),
    images=10,
    val_images=20,
    objects=300,
    most_objects=97,
    image_size=(256, 320),
    object_size=19.0,
)
CPU = DeviceFacts(device_type="cpu", memory=8 * GIB, cores=2)
GPU = DeviceFacts(device_type="cuda", memory=80 * GIB, cores=16)
NUCLEI = load_base_model("nuclei").cfg
COCO = load_config("coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml")


def recipe(data: DataFacts = DATA, device: DeviceFacts = CPU, base: CfgNode = NUCLEI, **wishes: Any) -> Recipe:
    overrides = wishes.pop("overrides", ())
    known = wishes.pop("known", data.classes)
    return make_recipe(base, known, data, device, Wishes(**wishes), overrides)


def change(**values: Any) -> DataFacts:
    return dataclasses.replace(DATA, **values)


facts = st.builds(
    DataFacts,
    classes=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=5, unique=True).map(tuple),
    images=st.integers(1, 200_000),
    val_images=st.integers(1, 5_000),
    objects=st.integers(1, 1_000_000),
    most_objects=st.integers(1, 3_000),
    image_size=st.tuples(st.integers(1, 5_000), st.integers(1, 20_000)).map(sorted).map(tuple),
    object_size=st.floats(1, 3_000),
)
devices = st.builds(
    DeviceFacts,
    device_type=st.just("cuda"),
    memory=st.integers(GIB // 4, 200 * GIB),
    ranks=st.integers(1, 8),
    cores=st.integers(1, 128),
    speed=st.floats(1e-4, 1e3),
) | st.builds(DeviceFacts, device_type=st.just("cpu"), memory=st.integers(GIB // 4, 99 * GIB), cores=st.integers(1, 64))
wishes = st.one_of(
    st.just({}),
    st.builds(lambda n: {"iterations": n}, st.integers(1, 100_000)),
    st.builds(lambda n: {"epochs": n}, st.floats(0.01, 100)),
    st.builds(lambda n: {"image_size": n}, st.integers(32, 4_000)),
)


@given(facts, devices, wishes, st.sampled_from([NUCLEI, COCO]), st.booleans())
@settings(max_examples=60)
def test_every_recipe_is_a_valid_training(
    data: DataFacts, device: DeviceFacts, given_wishes: dict[str, Any], base: CfgNode, knows: bool
) -> None:
    known = data.classes if knows else (None,) * len(data.classes)
    made = recipe(data, device, base, known=known, **given_wishes)
    cfg, solver = made.cfg, made.cfg.SOLVER
    assert solver.WARMUP_ITERS < solver.MAX_ITER
    assert 1 <= solver.IMS_PER_BATCH <= max(data.images, device.ranks)
    assert solver.IMS_PER_BATCH % (device.ranks * solver.ACCUMULATION_STEPS) == 0
    assert 1 <= cfg.TEST.EVAL_PERIOD <= solver.MAX_ITER
    assert cfg.TEST.EVAL_PERIOD * 10 >= solver.MAX_ITER or cfg.TEST.EVAL_PERIOD * 11 > solver.MAX_ITER
    assert given_wishes.get("iterations", solver.MAX_ITER) == solver.MAX_ITER
    assert cfg.INPUT.MIN_SIZE_TEST <= cfg.INPUT.MAX_SIZE_TEST
    assert cfg.INPUT.IMAGE_SIZE % 32 == 0
    assert not cfg.INPUT.KEEP_EMPTY_INSTANCES
    assert 0 < solver.EMA_DECAY < 1
    assert len(data.classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    # Registered, and their classes are those of any dataset.
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("nuclei_train_of_nobody",), ()
    with pytest.raises(ConfigError, match="nuclei_train_of_nobody.* not registered"):
        validate_config(cfg, training=True)  # nothing is wrong before the datasets
    assert all(note.endswith(".") for note in (*made.notes, *made.warnings))


def test_the_base_is_not_changed_and_its_objects_are_inherited() -> None:
    base = NUCLEI.clone()
    base.MODEL.MASK_FORMER.TEST.INSTANCES = CfgNode({"MIN_AREA": 7})
    before = base.dump()
    cfg = recipe(base=base).cfg
    assert base.dump() == before
    assert cfg.MODEL.MASK_FORMER.TEST.INSTANCES.MIN_AREA == 7


def test_tiles_and_smallest_area_fit_the_images() -> None:
    near = recipe().cfg.MODEL.MASK_FORMER.TEST
    assert (near.TILES.SIZE, near.INSTANCES.MIN_AREA) == (256, 18)  # 5 % of 19 x 19
    large = recipe(change(image_size=(1000, 1500), object_size=60.0)).cfg
    assert large.MODEL.MASK_FORMER.TEST.INSTANCES.MIN_AREA == 25
    # Inference sees a tile at the scale of the images: 640 / 1000, and not 640 / 256.
    assert (large.INPUT.MIN_SIZE_TEST, large.MODEL.MASK_FORMER.TEST.TILES.SIZE) == (640, 1000)
    assert recipe(change(object_size=5.0)).cfg.MODEL.MASK_FORMER.TEST.INSTANCES.MIN_AREA == 1
    assert recipe(base=COCO).cfg.MODEL.MASK_FORMER.TEST.TILES.SIZE == 0


def test_augmentation_of_microscopes_is_not_inherited() -> None:
    model, made = load_config(zoo.lookup("nuclei").config_file).INPUT, recipe().cfg.INPUT
    assert model.STAIN_AUG.PROB and model.EMPTY_PROB and model.INTENSITY_AUG.INVERT_PROB
    defaults = load_config().INPUT
    assert (made.STAIN_AUG.PROB, made.EMPTY_PROB, made.INTENSITY_AUG) == (0.0, 0.0, defaults.INTENSITY_AUG)


def test_settings_for_ten_images_on_two_cores() -> None:
    made = recipe()
    cfg = made.cfg
    assert cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED
    assert cfg.INPUT.MIN_SIZE_TEST == 640  # as the model was trained
    assert cfg.INPUT.IMAGE_SIZE == 640  # with crops of half that side the AP of the model halves
    assert cfg.SOLVER.IMS_PER_BATCH == 1 and pytest.approx(2.5e-5) == cfg.SOLVER.BASE_LR
    assert cfg.TEST.EVAL_AT_START
    assert cfg.MODEL.TIMM.FREEZE_NORM
    assert cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS == 12544 // 4
    assert any("class head is kept" in note for note in made.notes)
    assert not made.warnings


def test_a_gpu_trains_longer_on_larger_batches_in_mixed_precision() -> None:
    slow, fast = recipe().cfg, recipe(device=GPU).cfg
    assert fast.SOLVER.AMP.ENABLED and fast.MODEL.DEVICE == "cuda"
    assert fast.INPUT.IMAGE_SIZE == slow.INPUT.IMAGE_SIZE
    assert fast.SOLVER.IMS_PER_BATCH > slow.SOLVER.IMS_PER_BATCH and fast.SOLVER.BASE_LR > slow.SOLVER.BASE_LR
    views = [cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH for cfg in (slow, fast)]
    assert views[1] > 2 * views[0]


def test_little_memory_splits_the_requested_batch() -> None:
    small = dataclasses.replace(GPU, memory=3 * GIB)
    made = recipe(device=small, batch=8)
    assert made.cfg.SOLVER.IMS_PER_BATCH == 8
    assert made.cfg.SOLVER.ACCUMULATION_STEPS > 1
    assert any("micro-batches" in note for note in made.notes)
    with pytest.raises(ConfigError, match=r"--batch 3 .*multiple .*\(2\)"):
        recipe(device=dataclasses.replace(GPU, ranks=2), batch=3)


def test_new_classes_lengthen_the_training() -> None:
    new, old = recipe(known=(None,)), recipe()
    assert new.cfg.SOLVER.MAX_ITER > old.cfg.SOLVER.MAX_ITER
    assert new.cfg.SOLVER.BASE_LR > old.cfg.SOLVER.BASE_LR
    assert any("does not know 1 of 1" in note for note in new.notes)


def test_more_objects_than_queries_warn_and_keep_the_weights() -> None:
    made = recipe(change(most_objects=520))
    assert made.cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 400
    assert any("520 objects" in w and "NUM_OBJECT_QUERIES 650" in w for w in made.warnings)
    assert made.cfg.TEST.DETECTIONS_PER_IMAGE >= 400


def test_small_objects_enlarge_the_images() -> None:
    tiny = recipe(change(image_size=(1000, 1000), object_size=15.0), GPU)
    assert tiny.cfg.INPUT.MIN_SIZE_TEST > 512
    assert tiny.cfg.INPUT.MAX_SIZE_TEST >= tiny.cfg.INPUT.MIN_SIZE_TEST
    hopeless = recipe(change(image_size=(9000, 9000), object_size=15.0))
    assert any("tiles" in warning for warning in hopeless.warnings)


def test_few_validation_images_warn_and_do_not_stop_early() -> None:
    made = recipe(change(val_images=1))
    assert any("Only 1 image" in warning for warning in made.warnings)
    assert made.cfg.SOLVER.EARLY_STOP_PATIENCE == 0
    assert recipe(change(val_images=1), patience=2).cfg.SOLVER.EARLY_STOP_PATIENCE == 2
    assert recipe(device=GPU).cfg.SOLVER.EARLY_STOP_PATIENCE > 0


def test_evaluations_on_many_images_are_rarer() -> None:
    few, many = recipe(change(val_images=3)).cfg, recipe(change(val_images=500)).cfg
    assert few.TEST.EVAL_PERIOD < many.TEST.EVAL_PERIOD


def test_minutes_set_the_length_from_the_measured_speed() -> None:
    lengths = [
        recipe(device=dataclasses.replace(CPU, speed=speed), minutes=10).cfg.SOLVER.MAX_ITER for speed in (0.1, 0.2)
    ]
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.15)
    # 0.2 million pixels in a second are 2 s for a crop of 640 x 640; evaluations take a part of the time.
    assert 120 < lengths[1] < 600 / 2


def test_keys_of_the_command_take_precedence_and_the_rest_fits() -> None:
    made = recipe(overrides=["SOLVER.MAX_ITER", "4", "INPUT.RANDOM_FLIP", "vertical", "SOLVER.BASE_LR", "0.5"])
    assert (made.cfg.SOLVER.MAX_ITER, made.cfg.SOLVER.WARMUP_ITERS) == (4, 0)
    assert made.cfg.SOLVER.BASE_LR == 0.5 and made.cfg.INPUT.RANDOM_FLIP == "vertical"
    assert made.cfg.TEST.EVAL_PERIOD <= 2
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITR.*SOLVER\.MAX_ITER"):
        recipe(overrides=["SOLVER.MAX_ITR", "4"])


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        ({"iterations": 0}, "--iterations is 0"),
        ({"epochs": -1.0}, "--epochs is -1.0"),
        ({"learning_rate": float("nan")}, "--lr is nan"),
        ({"image_size": 8}, "--image-size is 8"),
        ({"iterations": 5, "epochs": 2.0}, "give one of them"),
        ({"overrides": ["SOLVER.MAX_ITER", "many"]}, r"SOLVER\.MAX_ITER is 'many'"),
    ],
)
def test_wishes_out_of_range(wishes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        recipe(**wishes)


def test_models_that_cannot_learn_instances_are_refused() -> None:
    video = load_config("youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml")
    with pytest.raises(ConfigError, match="VideoMaskFormer"):
        recipe(base=video)
    with pytest.raises(ConfigError, match="nothing to learn"):
        recipe(change(objects=0))


def test_a_panoptic_model_becomes_one_of_instances() -> None:
    panoptic = load_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    node = recipe(base=panoptic, known=(None,)).cfg.MODEL.MASK_FORMER.TEST
    assert (node.INSTANCE_ON, node.PANOPTIC_ON, node.SEMANTIC_ON) == (True, False, False)
