"""Calls that programs make of the dataset mappers and of the modules that register datasets."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.config import configurable
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from PIL import Image

from mask2former import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from mask2former.data.dataset_mappers import YTVISDatasetMapper, build_mapper
from mask2former.data.dataset_mappers.coco_instance_new_baseline_dataset_mapper import (
    build_transform_gen,
    convert_coco_poly_to_mask,
)
from mask2former.data.sampler import random_state

from .client_models import ADE20K, INSTANCE, PANOPTIC, client_config, client_model, record

SMALL = ["INPUT.IMAGE_SIZE", 64]


@pytest.fixture
def cfg() -> Any:
    return client_config(INSTANCE, SMALL)


def labeled(folder: Path) -> dict[str, Any]:
    """Return the record of `record` with a label map (0, 1, and 9 on the right) and segments of the same pixels."""
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 10:50], labels[:, 70:] = 1, 9
    Image.fromarray(labels).save(folder / "labels.png")
    ids = np.where(labels == 9, 0, labels + 1)
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=2).astype(np.uint8)).save(folder / "ids.png")
    segments = [{"id": 1 + k, "category_id": k, "iscrowd": 0, "isthing": True} for k in range(2)]
    files = {"sem_seg_file_name": str(folder / "labels.png"), "pan_seg_file_name": str(folder / "ids.png")}
    entry = record(folder)
    del entry["annotations"]
    return {**entry, **files, "segments_info": segments}


def test_a_coco_sample(cfg: Any, tmp_path: Path) -> None:
    entry = record(tmp_path)
    before = copy.deepcopy(entry)
    cfg.merge_from_list(["INPUT.MIN_SCALE", 0.5, "INPUT.MAX_SCALE", 0.5, "INPUT.RANDOM_FLIP", "none"])
    sample = COCOInstanceNewBaselineDatasetMapper(cfg, True)(entry)
    assert sorted(sample) == ["file_name", "height", "image", "image_id", "instances", "padding_mask", "width"]
    assert sorted(sample["instances"].get_fields()) == ["gt_boxes", "gt_classes", "gt_masks"]
    assert sample["instances"].gt_masks.shape == (2, 64, 64) and entry == before
    padding = sample["padding_mask"]  # 60 x 80 at half of 64 / 80 is 24 x 32
    assert padding.dtype == torch.bool and padding.shape == (64, 64)
    assert not padding[:24, :32].any() and padding[24:].all() and padding[:, 32:].all()


def test_the_padding_mask_is_that_of_the_transforms(tmp_path: Path) -> None:
    """With crops, flips and rotations, which are lookups, and with a free rotation, which is not."""
    chains: list[list[Any]] = [
        [T.RandomFlip(), T.ResizeScale(0.3, 1.5, 64, 64), T.FixedSizeCrop((50, 70), seg_pad_value=0)],
        [T.ResizeShortestEdge(40), T.RandomRotation([20, 40], expand=True), T.FixedSizeCrop((90, 90), seg_pad_value=0)],
    ]
    for number, chain in enumerate(chains):
        mapper = COCOInstanceNewBaselineDatasetMapper(is_train=True, tfm_gens=chain, image_format="RGB")
        for seed in range(5):
            with random_state(seed):
                padding = mapper(record(tmp_path))["padding_mask"]
            with random_state(seed):
                transforms = T.AugmentationList(chain)(T.AugInput(np.zeros((60, 80, 3), np.uint8)))
            expected = transforms.apply_segmentation(np.ones((60, 80), np.uint8)) == 0
            np.testing.assert_array_equal(padding.numpy(), expected)
            assert number == 0 or padding.any()


def test_the_attributes_of_the_reference_are_there(cfg: Any) -> None:
    ade, coco = client_config(ADE20K), client_config(PANOPTIC)
    lsj, full = ("tfm_gens", "img_format", "is_train"), ("ignore_label", "size_divisibility")
    for mapper, names in (
        (COCOInstanceNewBaselineDatasetMapper(cfg, True), lsj),
        (COCOPanopticNewBaselineDatasetMapper(coco, True), lsj),
        (MaskFormerInstanceDatasetMapper(cfg, True), (*lsj, "size_divisibility")),
        (MaskFormerSemanticDatasetMapper(ade, True), (*lsj, *full)),
        (MaskFormerPanopticDatasetMapper(ade, True), (*lsj, *full)),
    ):
        assert not [name for name in names if name not in vars(mapper)]
        assert mapper.augmentations is mapper.tfm_gens and mapper.image_format == mapper.img_format == "RGB"
    assert issubclass(MaskFormerPanopticDatasetMapper, MaskFormerSemanticDatasetMapper)


def test_from_config_returns_the_keywords_of_the_reference(cfg: Any) -> None:
    lsj = ["image_format", "is_train", "tfm_gens"]
    assert sorted(COCOInstanceNewBaselineDatasetMapper.from_config(cfg, True)) == lsj
    assert sorted(COCOPanopticNewBaselineDatasetMapper.from_config(cfg, True)) == lsj
    crop = ["augmentations", "image_format", "is_train", "size_divisibility"]
    assert sorted(MaskFormerInstanceDatasetMapper.from_config(cfg, True)) == crop
    for mapper_class in (MaskFormerSemanticDatasetMapper, MaskFormerPanopticDatasetMapper):
        assert sorted(mapper_class.from_config(client_config(ADE20K), True)) == sorted([*crop, "ignore_label"])


@pytest.mark.parametrize("made", [list, T.AugmentationList], ids=["list", "AugmentationList"])
def test_explicit_keywords(tmp_path: Path, made: Any) -> None:
    tfm_gens = made([T.Resize((64, 64))])
    mapper = COCOInstanceNewBaselineDatasetMapper(is_train=True, tfm_gens=tfm_gens, image_format="RGB")
    assert mapper(record(tmp_path))["image"].shape == (3, 64, 64)
    keywords = {"image_format": "RGB", "ignore_label": 255, "size_divisibility": 100}
    semantic = MaskFormerSemanticDatasetMapper(True, augmentations=tfm_gens, **keywords)
    assert semantic(labeled(tmp_path))["sem_seg"].shape == (100, 100)
    assert MaskFormerPanopticDatasetMapper(True, augmentations=made([T.RandomFlip()]), **keywords).is_train
    clips = YTVISDatasetMapper(
        True, augmentations=tfm_gens, image_format="RGB", use_instance_mask=True, sampling_frame_num=3, num_classes=4
    )
    video = {"file_names": [record(tmp_path)["file_name"]], "annotations": []}
    assert [frame.shape for frame in clips(video)["image"]] == [(3, 64, 64)] * 3
    with pytest.raises(ValueError, match="use_instance_mask=False"):
        YTVISDatasetMapper(True, augmentations=tfm_gens, image_format="RGB", use_instance_mask=False)


def test_attributes_act_when_set(tmp_path: Path) -> None:
    class Mine(COCOInstanceNewBaselineDatasetMapper):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            self.tfm_gens = [
                T.ResizeShortestEdge(short_edge_length=40, max_size=40),
                T.FixedSizeCrop(crop_size=(40, 40), seg_pad_value=0),
            ]

    entry = labeled(tmp_path)
    pixels = Mine(client_config(INSTANCE, SMALL))(record(tmp_path))["image"]
    assert pixels.shape == (3, 40, 40)
    mapper = MaskFormerSemanticDatasetMapper(
        True, augmentations=[], image_format="RGB", ignore_label=255, size_divisibility=-1
    )
    first = mapper(entry)
    assert first["instances"].gt_classes.tolist() == [0, 1, 9] and first["image"].shape == (3, 60, 80)
    mapper.ignore_label, mapper.size_divisibility, mapper.img_format = 9, 90, "BGR"
    second = mapper(entry)
    assert second["instances"].gt_classes.tolist() == [0, 1] and second["image"].shape == (3, 90, 90)
    assert (second["sem_seg"][60:] == 9).all() and torch.equal(second["image"][[2, 1, 0], :60, :80], first["image"])
    mapper.augmentations = T.AugmentationList([T.Resize((30, 40))])
    mapper.is_train, mapper.size_divisibility = False, 0
    third = mapper(entry)
    assert third["image"].shape == (3, 30, 40) and "instances" not in third
    mapper.is_train, mapper.num_classes = True, 1
    with pytest.raises(ValueError, match=r"not a class index in \[0, 1\)"):
        mapper(entry)


def test_a_subclass_that_extends_the_call(cfg: Any, tmp_path: Path) -> None:
    class Mine(COCOInstanceNewBaselineDatasetMapper):
        def __init__(self, cfg: Any, is_train: bool = True) -> None:
            super().__init__(cfg, is_train)

        def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
            sample = super().__call__(dataset_dict=copy.deepcopy(dataset_dict))
            return {**sample, "extra": len(sample["instances"])}

    entry = record(tmp_path)
    assert Mine(cfg)(entry)["extra"] == Mine(cfg)(dataset_dict=entry)["extra"] == 2


def test_a_subclass_with_more_keywords(cfg: Any, tmp_path: Path) -> None:
    class Mine(COCOInstanceNewBaselineDatasetMapper):
        @configurable
        def __init__(self, *args: Any, weak_mode: str = "other", **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            self.weak_mode = weak_mode

        @classmethod
        def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
            return {**super().from_config(cfg, is_train=is_train), "weak_mode": "box"}

    mapper = Mine(cfg)
    assert mapper.weak_mode == "box" and len(mapper(record(tmp_path))["instances"]) == 2


def test_a_subclass_whose_constructor_sets_the_attributes_itself(cfg: Any, tmp_path: Path) -> None:
    class Coco(COCOInstanceNewBaselineDatasetMapper):
        @configurable
        def __init__(self, is_train: bool = True, *, tfm_gens: Any, image_format: str) -> None:
            self.tfm_gens = tfm_gens
            self.img_format = image_format
            self.is_train = is_train

        @classmethod
        def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
            tfm_gens = build_transform_gen(cfg, is_train)
            return {"is_train": is_train, "tfm_gens": tfm_gens, "image_format": cfg.INPUT.FORMAT}

    sample = Coco(cfg)(record(tmp_path))
    assert sample["image"].shape == (3, 64, 64) and sample["instances"].gt_masks.shape == (2, 64, 64)

    class Set:
        def __init__(self, tfm_gens: Any) -> None:
            self.is_train, self.tfm_gens, self.img_format = True, tfm_gens, "RGB"

    for base in (
        COCOPanopticNewBaselineDatasetMapper,
        MaskFormerInstanceDatasetMapper,
        MaskFormerPanopticDatasetMapper,
        MaskFormerSemanticDatasetMapper,
    ):
        mapper = type("Derived", (Set, base), {})([T.Resize((30, 40))])
        entry = record(tmp_path) if base is MaskFormerInstanceDatasetMapper else labeled(tmp_path)
        assert mapper(entry)["instances"].gt_masks.shape[1:] == (30, 40)


def test_subclasses_of_the_semantic_mapper(tmp_path: Path) -> None:
    class Given(MaskFormerSemanticDatasetMapper):
        def __init__(self, cfg: Any, is_train: bool = True, augmentations: Any = ()) -> None:
            super().__init__(cfg, is_train, augmentations=augmentations)

    cfg = client_config(ADE20K)
    assert Given(cfg, augmentations=[T.Resize((30, 40))])(labeled(tmp_path))["sem_seg"].shape == (512, 512)

    class Explicit(MaskFormerSemanticDatasetMapper):
        @configurable
        def __init__(
            self,
            is_train: bool = True,
            *,
            augmentations: Any,
            image_format: str,
            ignore_label: int,
            size_divisibility: int,
            mine: int,
        ) -> None:
            super().__init__(
                is_train,
                augmentations=augmentations,
                image_format=image_format,
                ignore_label=ignore_label,
                size_divisibility=size_divisibility,
            )
            self.mine = mine

        @classmethod
        def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
            return {**super().from_config(cfg, is_train), "mine": 1}

    assert Explicit(cfg, True).mine == 1


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return warnings alone: another test may have let lower levels through."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_subclass_without_our_keyword_is_told_of_a_value_that_it_cannot_have(
    cfg: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Explicit(MaskFormerInstanceDatasetMapper):
        @configurable
        def __init__(self, is_train: bool = True, *, augmentations: Any, image_format: str, size_divisibility: int):
            super().__init__(
                is_train, augmentations=augmentations, image_format=image_format, size_divisibility=size_divisibility
            )

    assert Explicit(cfg).keep_empty
    assert not warnings(caplog)
    cfg.INPUT.KEEP_EMPTY_INSTANCES = False
    assert not MaskFormerInstanceDatasetMapper(cfg).keep_empty and not warnings(caplog)
    assert Explicit(cfg).keep_empty and "Explicit takes no keep_empty" in caplog.text


def test_detectron2s_loader_trains_with_a_mapper(cfg: Any, tmp_path: Path) -> None:
    DatasetCatalog.register("client_set", lambda: [{**record(tmp_path), "image_id": i} for i in range(4)])
    try:
        MetadataCatalog.get("client_set").set(thing_classes=["a", "b", "c"], evaluator_type="coco")
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("client_set",)
        cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0])
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
        loader = build_detection_train_loader(cfg, mapper=COCOInstanceNewBaselineDatasetMapper(cfg, True))
        samples = next(iter(loader))
        assert len(samples) == 2 and len(client_model(cfg, train=True)(samples)) == 12
    finally:
        DatasetCatalog.remove("client_set")
        MetadataCatalog.remove("client_set")


def test_a_model_learns_from_objects_that_the_crop_removed(cfg: Any, tmp_path: Path) -> None:
    mapper = MaskFormerInstanceDatasetMapper(cfg, True)
    mapper.tfm_gens, mapper.size_divisibility = [T.CropTransform(0, 0, 38, 60)], 64  # one of two, and neither
    samples = [mapper(record(tmp_path))]
    mapper.tfm_gens = [T.CropTransform(0, 45, 80, 15)]
    samples.append(mapper(record(tmp_path)))
    shown = [sample["instances"].gt_masks.flatten(1).any(1).tolist() for sample in samples]
    assert shown == [[True, False], [False, False]]
    losses = client_model(cfg, train=True)(samples)
    assert len(losses) == 12 and all(bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()


def _shape_in_worker(mapper: Any, entry: dict[str, Any], results: Any) -> None:
    results.put(tuple(mapper(entry)["instances"].gt_masks.shape))


def test_mappers_are_pickled_and_read_all_forms_of_masks(cfg: Any, tmp_path: Path) -> None:
    entry = record(tmp_path)
    bitmap = np.zeros((60, 80), np.uint8)
    bitmap[10:20, 10:30] = 1
    for segmentation in (bitmap.astype(bool), coco_mask.encode(np.asfortranarray(bitmap))):
        entry["annotations"].append({**entry["annotations"][0], "segmentation": segmentation})
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.CROP.ENABLED", False])
    for mapper_class in (MaskFormerInstanceDatasetMapper, COCOInstanceNewBaselineDatasetMapper):
        mapper = pickle.loads(pickle.dumps(mapper_class(cfg, True)))
        mapper.tfm_gens = [T.Resize((30, 40))]
        masks = mapper(entry)["instances"].gt_masks
        assert masks.shape == (4, 30, 40) and masks[2:].flatten(1).sum(1).tolist() == [50, 50]


@pytest.mark.slow
def test_a_mapper_works_in_a_spawned_worker(cfg: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (COCOInstanceNewBaselineDatasetMapper(cfg, True), record(tmp_path), results)
    worker = context.Process(target=_shape_in_worker, args=arguments)
    worker.start()
    assert results.get(timeout=120) == (2, 64, 64)
    worker.join()


def test_not_for_training(cfg: Any, tmp_path: Path) -> None:
    sample = COCOInstanceNewBaselineDatasetMapper(cfg, False)(record(tmp_path))
    assert sample["image"].shape == (3, 64, 85) and not set(sample) & {"instances", "annotations"}


def test_empty_and_missing_annotations(cfg: Any, tmp_path: Path) -> None:
    entry = {**record(tmp_path), "annotations": []}
    instances = COCOInstanceNewBaselineDatasetMapper(cfg, True)(entry)["instances"]
    assert len(instances) == 0 and instances.gt_masks.shape == (0, 64, 64)
    del entry["annotations"]
    for mapper_class in (COCOInstanceNewBaselineDatasetMapper, COCOPanopticNewBaselineDatasetMapper):
        sample = mapper_class(cfg, True)(entry)
        assert sorted(sample) == ["file_name", "height", "image", "image_id", "padding_mask", "width"]
    for name, missing in (("coco_instance_lsj", "annotations"), ("coco_panoptic_lsj", "pan_seg_file_name")):
        cfg.INPUT.DATASET_MAPPER_NAME = name  # the trainer's own mapper says what is missing
        with pytest.raises(ValueError, match=f"training sample has no '{missing}'"):
            build_mapper(cfg)(entry)


def test_the_trainers_mapper_checks_classes(cfg: Any, tmp_path: Path) -> None:
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    for name in ("coco_instance_lsj", "mask_former_instance"):
        cfg.INPUT.DATASET_MAPPER_NAME = name
        with pytest.raises(ValueError, match=r"category_id 2 is not a class index in \[0, 2\)"):
            build_mapper(cfg)(record(tmp_path))
        own = COCOInstanceNewBaselineDatasetMapper(is_train=True, tfm_gens=[], image_format="RGB", num_classes=5)
        own.use_config(cfg)
        assert own.num_classes == 5, "what a program set stays"
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 9
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    assert build_mapper(cfg).ignore_value == 9 and build_mapper(cfg).num_classes == 2


def test_panoptic_samples_have_segments_info(tmp_path: Path) -> None:
    entry = labeled(tmp_path)
    sample = COCOPanopticNewBaselineDatasetMapper(client_config(PANOPTIC, SMALL), True)(entry)
    assert sample["segments_info"] == entry["segments_info"] and len(sample["instances"]) == 2
    assert sample["padding_mask"].shape == (64, 64)


def test_polygons_to_masks() -> None:
    masks = convert_coco_poly_to_mask([[[1, 1, 5, 1, 5, 5]], [], [np.array([0.0, 0, 4, 0, 4, 4, 0, 4])]], 8, 8)
    assert masks.shape == (3, 8, 8) and masks.dtype == torch.uint8
    assert masks.flatten(1).sum(1).tolist()[1:] == [0, 16]
    theirs = coco_mask.decode(coco_mask.frPyObjects([[1, 1, 5, 1, 5, 5]], 8, 8))[:, :, 0]
    np.testing.assert_array_equal(masks[0].numpy(), theirs)
    assert convert_coco_poly_to_mask([], 8, 9).shape == (0, 8, 9)


DATASETS = "mask2former.data.datasets"


def test_tables_and_metadata_of_datasets() -> None:
    def module(name: str) -> Any:
        return importlib.import_module(f"{DATASETS}.register_{name}")

    ade = module("ade20k_panoptic")
    assert len(ade.ADE20K_150_CATEGORIES) == len(ade.ADE20k_COLORS) == 150
    assert ade.ADE20K_150_CATEGORIES[0] == {"color": [120, 120, 120], "id": 0, "isthing": 0, "name": "wall"}
    full = module("ade20k_full")
    assert len(full.ADE20K_SEM_SEG_FULL_CATEGORIES) == len(full._get_ade20k_full_meta()["stuff_classes"]) == 847
    instance = module("ade20k_instance")
    assert instance.ADE_CATEGORIES[0] == {"id": 7, "name": "bed"} and len(instance.ADE_CATEGORIES) == 100
    vistas, stuff = module("mapillary_vistas"), module("coco_stuff_10k")
    keys = [
        "stuff_classes",
        "stuff_colors",
        "stuff_dataset_id_to_contiguous_id",
        "thing_classes",
        "thing_colors",
        "thing_dataset_id_to_contiguous_id",
    ]
    registered = {
        "ade20k_full_sem_seg_val": full._get_ade20k_full_meta(),
        "ade20k_instance_val": instance._get_ade_instances_meta(),
        "mapillary_vistas_sem_seg_val": vistas._get_mapillary_vistas_meta(),
        "coco_2017_test_stuff_10k_sem_seg": stuff._get_coco_stuff_meta(),
    }
    for name, panoptic, counts in (
        ("ade20k_panoptic_val", ade, (100, 150)),
        ("mapillary_vistas_panoptic_val", module("mapillary_vistas_panoptic"), (65, 65)),
        ("coco_2017_val_panoptic_with_sem_seg", module("coco_panoptic_annos_semseg"), (80, 133)),
    ):
        registered[name] = panoptic.get_metadata()
        assert sorted(registered[name]) == keys
        assert (len(registered[name]["thing_classes"]), len(registered[name]["stuff_classes"])) == counts
    for name, metadata in registered.items():
        known = MetadataCatalog.get(name).as_dict()
        assert {key: known.get(key, metadata[key]) for key in metadata} == metadata


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("ade20k_panoptic", "ade20k_panoptic"),
        ("mapillary_vistas_panoptic", "mapillary_vistas_panoptic"),
        ("coco_panoptic_annos_semseg", "coco_panoptic"),
    ],
)
def test_panoptic_datasets_are_loaded_and_registered_by_function(tmp_path: Path, module: str, family: str) -> None:
    functions = importlib.import_module(f"{DATASETS}.register_{module}")
    meta = functions.get_metadata()
    thing = next(iter(meta["thing_dataset_id_to_contiguous_id"].items()))
    stuff = next(item for item in meta["stuff_dataset_id_to_contiguous_id"].items() if item[0] != thing[0])
    segments = [{"id": 5, "category_id": thing[0]}, {"id": 6, "category_id": stuff[0]}]
    image_id = 7 if family == "coco_panoptic" else "7"
    annotation = {"image_id": image_id, "file_name": "7.png", "segments_info": segments}
    (tmp_path / "p.json").write_text(json.dumps({"annotations": [annotation]}))
    (tmp_path / "7.jpg").touch()
    (tmp_path / "7.png").touch()
    root, file = str(tmp_path), str(tmp_path / "p.json")
    records = getattr(functions, f"load_{family}_json")(file, root, root, root, meta)
    assert records[0]["image_id"] == image_id and records[0]["file_name"] == f"{root}/7.jpg"
    assert records[0]["sem_seg_file_name"] == records[0]["pan_seg_file_name"] == f"{root}/7.png"
    found = [(segment["category_id"], segment["isthing"]) for segment in records[0]["segments_info"]]
    isthing = stuff[0] in meta["thing_dataset_id_to_contiguous_id"]
    assert found == [(thing[1], True), (stuff[1], isthing)]
    register = getattr(functions, f"register_{module.replace('semseg', 'sem_seg')}")
    paths = {"image_root": root, "panoptic_root": root, "panoptic_json": file, "instances_json": file}
    labels = "sem_seg_root" if family == "coco_panoptic" else "semantic_root"
    name = "client_panoptic_with_sem_seg" if family == "coco_panoptic" else "client_panoptic"
    for _ in range(2):  # a second call replaces the first
        register("client_panoptic", meta, **paths, **{labels: root})
    try:
        assert DatasetCatalog.get(name) == records
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == meta["thing_classes"] and metadata.json_file == file
        assert metadata.label_divisor == 1000 and metadata.ignore_label == (65 if "mapillary" in family else 255)
        assert metadata.evaluator_type == f"{family}_seg"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_register_all_of_a_family(tmp_path: Path) -> None:
    for module, function in (
        ("ade20k_full", "register_all_ade20k_full"),
        ("ade20k_panoptic", "register_all_ade20k_panoptic"),
        ("ade20k_instance", "register_all_ade20k_instance"),
        ("coco_stuff_10k", "register_all_coco_stuff_10k"),
        ("coco_panoptic_annos_semseg", "register_all_coco_panoptic_annos_sem_seg"),
        ("mapillary_vistas", "register_all_mapillary_vistas"),
        ("mapillary_vistas_panoptic", "register_all_mapillary_vistas_panoptic"),
    ):
        register = getattr(importlib.import_module(f"{DATASETS}.register_{module}"), function)
        register(str(tmp_path))
    try:
        for name in ("ade20k_full_sem_seg_val", "coco_2017_val_panoptic_with_sem_seg", "mapillary_vistas_sem_seg_val"):
            assert MetadataCatalog.get(name).image_root.startswith(str(tmp_path))
    finally:
        importlib.import_module(DATASETS).register_all()
