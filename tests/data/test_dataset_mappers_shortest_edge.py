"""The mappers of label maps and panoptic PNG files, with a resize of the shortest edge and a crop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

import mask2former
from mask2former.config import load_config
from mask2former.data import (
    BadRecordError,
    MaskFormerSemanticDatasetMapper,
    build_mapper,
)
from mask2former.data.dataset_mappers.targets import dataset_ignore_label
from mask2former.data.mapped_dataset import TrainingRecords
from mask2former.data.sampler import Draw, random_state

Record = dict[str, Any]


@pytest.fixture
def cfg() -> CfgNode:
    """Shortest edges 40 and 64, crop 32x48, square of 56 pixels, three classes."""
    options: list[Any] = ["INPUT.DATASET_MAPPER_NAME", "mask_former_semantic", "INPUT.FORMAT", "RGB"]
    options += ["INPUT.MIN_SIZE_TRAIN", (40, 64), "INPUT.MAX_SIZE_TRAIN", 200, "INPUT.SIZE_DIVISIBILITY", 56]
    options += ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [32, 48]]
    options += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "DATASETS.TRAIN", ()]
    return load_config(None, options)


@pytest.fixture
def labels() -> np.ndarray:
    """Class 2 on the left, 0 on the right, a stripe of 1, and pixels without a class in a corner."""
    labels = np.zeros((50, 70), np.uint8)
    labels[:, :30], labels[20:26], labels[44:, 60:] = 2, 1, 255
    return labels


def _record(directory: Path, labels: np.ndarray, name: str = "labels.png") -> Record:
    """An image whose brightness is 40 + 60 x class (255 where there is none), and its label map."""
    gray = np.where(labels > 100, 255, 40 + 60 * labels.astype(int)).astype(np.uint8)
    Image.fromarray(np.repeat(gray[:, :, None], 3, axis=2)).save(directory / "image.png")
    Image.fromarray(labels).save(directory / name)
    return {"file_name": str(directory / "image.png"), "sem_seg_file_name": str(directory / name)}


def _panoptic(directory: Path, labels: np.ndarray) -> Record:
    """The same with a segment of id 10 + class for each class, class 1 being crowd."""
    record = _record(directory, labels)
    ids = np.where(labels == 255, 0, labels + 10).astype(np.uint8)
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=2)).save(directory / "ids.png")
    segments = [{"id": 10 + k, "category_id": k, "isthing": k > 0, "iscrowd": int(k == 1)} for k in range(3)]
    return {**record, "pan_seg_file_name": str(directory / "ids.png"), "segments_info": segments}


@pytest.fixture
def set_metadata() -> Iterator[Any]:
    names = []

    def register(name: str, **metadata: Any) -> str:
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_five_mappers_have_their_public_names() -> None:
    names = {
        "coco_instance_lsj": "COCOInstanceNewBaselineDatasetMapper",
        "coco_panoptic_lsj": "COCOPanopticNewBaselineDatasetMapper",
        "mask_former_instance": "MaskFormerInstanceDatasetMapper",
        "mask_former_panoptic": "MaskFormerPanopticDatasetMapper",
        "mask_former_semantic": "MaskFormerSemanticDatasetMapper",
    }
    assert sorted(names) == mask2former.data.mapper_names()
    for name, class_name in names.items():
        assert mask2former.data.dataset_mappers.MAPPERS[name] is getattr(mask2former, class_name)


def test_a_semantic_sample(cfg: CfgNode, tmp_path: Path, labels: np.ndarray) -> None:
    record = _record(tmp_path, labels)
    mapper = build_mapper(cfg)
    assert isinstance(mapper, MaskFormerSemanticDatasetMapper)
    np.random.seed(0)
    for _ in range(10):
        sample = mapper(record)
        sem_seg, instances = sample["sem_seg"], sample["instances"]
        assert sample["image"].shape == (3, 56, 56) and sem_seg.shape == (56, 56) and sem_seg.dtype == torch.int64
        assert (sample["image"][:, 32:] == 128).all() and (sample["image"][:, :, 48:] == 128).all()
        assert (sem_seg[32:] == 255).all() and (sem_seg[:, 48:] == 255).all()
        present = sorted(set(sem_seg.unique().tolist()) - {255})
        assert instances.gt_classes.tolist() == present and len(present) >= 2
        for label, mask in zip(present, instances.gt_masks, strict=True):
            assert torch.equal(mask, sem_seg == label)
        assert sample["height"] == 50 and sample["width"] == 70 and "sem_seg_file_name" not in sample


def test_labels_and_image_equal_detectron2s_transforms(cfg: CfgNode, tmp_path: Path, labels: np.ndarray) -> None:
    """The same random numbers give the same crop, and labels are resized as detectron2 resizes them."""
    cfg.merge_from_list(["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.6, "INPUT.SIZE_DIVISIBILITY", -1])
    record = _record(tmp_path, labels)
    image = np.asarray(Image.open(record["file_name"]))
    theirs = [
        T.ResizeShortestEdge((40, 64), 200, "choice"),
        T.RandomCrop_CategoryAreaConstraint("absolute", (32, 48), 0.6, 255),
        T.RandomFlip(),
    ]
    mapper, flipped = build_mapper(cfg), 0
    for seed in range(20):
        with random_state(seed):
            sample = mapper(record)
        inputs = T.AugInput(image, sem_seg=labels.astype(np.float64))
        with random_state(seed):
            transforms = T.AugmentationList(theirs)(inputs)
        flipped += any(isinstance(transform, T.HFlipTransform) for transform in transforms.transforms)
        np.testing.assert_array_equal(sample["image"].numpy(), inputs.image.transpose(2, 0, 1))
        np.testing.assert_array_equal(sample["sem_seg"].numpy(), inputs.sem_seg)
    assert 3 < flipped < 17


def _shares(cfg: CfgNode, record: Record, count: int = 60) -> np.ndarray:
    """Largest share of a class among the labeled pixels of each of `count` crops."""
    mapper, shares = build_mapper(cfg), []
    for seed in range(count):
        with random_state(seed):
            masks = mapper(record)["instances"].gt_masks
        areas = masks.flatten(1).sum(1)
        shares.append(float(areas.max() / areas.sum()))
    return np.array(shares)


def test_no_class_fills_a_crop(cfg: CfgNode, tmp_path: Path) -> None:
    labels = np.zeros((60, 120), np.uint8)
    labels[:, 60::12] = labels[:, 61::12] = labels[:, 62::12] = labels[:, 63::12] = labels[:, 64::12] = 1
    labels[:8, :8] = 255
    record = _record(tmp_path, labels)
    cfg.merge_from_list(["INPUT.CROP.SIZE", [24, 24], "INPUT.MIN_SIZE_TRAIN", (60,)])
    free = _shares(cfg, record)
    assert 0.3 < (free > 0.75).mean() < 0.7  # so ten tries fail about once in a thousand crops
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    assert (_shares(cfg, record) <= 0.75).all()


def test_an_image_of_one_class_still_gives_a_crop(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    assert (_shares(cfg, _record(tmp_path, np.ones((60, 90), np.uint8)), 5) == 1).all()


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_panoptic_crop_looks_at_the_classes(cfg: CfgNode, tmp_path: Path, with_labels: bool) -> None:
    """From the label map, or from the segments where there is none: the crops are the same."""
    labels = np.zeros((60, 90), np.uint8)
    labels[:, 40:], labels[:10, :10] = 2, 255
    labels[20:30, 30:50] = 1
    semantic = _record(tmp_path, labels)
    cfg.merge_from_list(["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.7, "INPUT.MIN_SIZE_TRAIN", (60,)])
    reference = build_mapper(cfg)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_panoptic"
    mapper = build_mapper(cfg)
    record = _panoptic(tmp_path, labels)
    if not with_labels:
        del record["sem_seg_file_name"]
    for seed in range(10):
        with random_state(seed):
            sample = mapper(record)
        with random_state(seed):
            expected = reference(semantic)
        assert torch.equal(sample["image"], expected["image"])
        for label, mask in zip(sample["instances"].gt_classes.tolist(), sample["instances"].gt_masks, strict=True):
            assert torch.equal(mask, expected["sem_seg"] == label)


def test_a_panoptic_sample(cfg: CfgNode, tmp_path: Path, labels: np.ndarray) -> None:
    cfg.merge_from_list(["INPUT.DATASET_MAPPER_NAME", "mask_former_panoptic", "INPUT.CROP.SIZE", [16, 16]])
    mapper = build_mapper(cfg)
    record = _panoptic(tmp_path, labels)
    Path(record["sem_seg_file_name"]).unlink()  # nothing needs it
    np.random.seed(1)
    emptied = 0
    for _ in range(20):
        sample = mapper(record)
        instances = sample["instances"]
        assert instances.gt_classes.tolist() == [0, 2], "the crowd segment is left out, vanished ones stay"
        assert (sample["image"][:, 16:] == 128).all() and not instances.gt_masks[:, 16:].any()
        emptied += int((~instances.gt_masks.flatten(1).any(1)).sum())
        assert not set(sample) & {"sem_seg", "pan_seg_file_name", "sem_seg_file_name"}
    assert emptied > 5
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    assert not mapper.targets.drop_empty and not build_mapper(cfg).targets.drop_empty


def test_shortest_edges_are_drawn_alike(cfg: CfgNode, tmp_path: Path) -> None:
    sizes = [int(x * 0.1 * 40) for x in range(5, 21)]
    cfg.merge_from_list(["INPUT.CROP.ENABLED", False, "INPUT.SIZE_DIVISIBILITY", -1])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", sizes, "INPUT.MAX_SIZE_TRAIN", 130])
    record = _record(tmp_path, np.zeros((30, 60), np.uint8))
    mapper, drawn = build_mapper(cfg), Counter()
    np.random.seed(0)
    for _ in range(480):
        height, width = mapper(record)["sem_seg"].shape
        assert width <= 130 and abs(width - 2 * height) <= 1
        drawn[height] += 1
    below = [size for size in sizes if 2 * size <= 130]
    assert set(drawn) == {*below, 65}  # what would be wider than MAX_SIZE_TRAIN is 65 high
    assert all(12 <= drawn[size] <= 55 for size in below)  # 30 expected, standard deviation 5.3
    assert drawn[65] == pytest.approx(30 * (len(sizes) - len(below)), abs=30)


def test_samples_depend_on_seed_and_position_alone(cfg: CfgNode, tmp_path: Path, labels: np.ndarray) -> None:
    cfg.merge_from_list(["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.6, "INPUT.COLOR_AUG_SSD", True])
    records = TrainingRecords([_record(tmp_path, labels)], build_mapper(cfg), seed=5)
    first = [records[Draw(0, position)] for position in range(4)]
    np.random.seed(99)
    again = [records[Draw(0, position)] for position in (3, 2, 1, 0)][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["sem_seg"], other["sem_seg"])
    assert not all(torch.equal(first[0]["image"], sample["image"]) for sample in first[1:])


def test_16_bit_labels(cfg: CfgNode, tmp_path: Path, set_metadata: Any) -> None:
    """As ADE20K-full: TIFF, 847 classes, 65535 where there is none."""
    name = set_metadata("many_classes", ignore_label=65535)
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 847, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 65535])
    cfg.merge_from_list(["DATASETS.TRAIN", (name,), "INPUT.CROP.SIZE", [40, 56]])
    labels = np.full((40, 56), 846, np.uint16)
    labels[:20], labels[:, 50:] = 300, 65535
    sample = build_mapper(cfg)(_record(tmp_path, labels, "labels.tif"))
    assert sample["instances"].gt_classes.tolist() == [300, 846]
    assert set(sample["sem_seg"].unique().tolist()) == {300, 846, 65535}
    assert (sample["sem_seg"][40:] == 65535).all()


def test_palette_and_gray_label_maps_are_the_same(cfg: CfgNode, tmp_path: Path, labels: np.ndarray) -> None:
    record = _record(tmp_path, labels)
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.reshape(-1).tolist())
    palette.putpalette([(7 * k) % 256 for k in range(768)])
    palette.save(tmp_path / "palette.png")
    mapper = build_mapper(cfg)
    with random_state(3):
        expected = mapper(record)["sem_seg"]
    with random_state(3):
        sample = mapper({**record, "sem_seg_file_name": str(tmp_path / "palette.png")})
    assert torch.equal(sample["sem_seg"], expected)


def test_images_of_other_kinds(cfg: CfgNode, tmp_path: Path, labels: np.ndarray) -> None:
    record = _record(tmp_path, labels)
    for mode in ("L", "RGBA", "P"):
        Image.open(record["file_name"]).convert(mode).save(tmp_path / f"{mode}.png")
        sample = build_mapper(cfg)({**record, "file_name": str(tmp_path / f"{mode}.png")})
        assert sample["image"].shape == (3, 56, 56) and sample["image"].dtype == torch.uint8


def test_an_image_without_labeled_pixels_has_no_masks(cfg: CfgNode, tmp_path: Path) -> None:
    sample = build_mapper(cfg)(_record(tmp_path, np.full((50, 70), 255, np.uint8)))
    assert len(sample["instances"]) == 0 and sample["instances"].gt_masks.shape == (0, 56, 56)
    assert (sample["sem_seg"] == 255).all()


def test_the_ignore_label_is_that_of_the_dataset(cfg: CfgNode, tmp_path: Path, set_metadata: Any) -> None:
    """Class 0 is to be ignored; pixel classifiers get MODEL.SEM_SEG_HEAD.IGNORE_VALUE instead."""
    assert dataset_ignore_label(cfg) == 255
    cfg.DATASETS.TRAIN = (set_metadata("zero_is_void", ignore_label=0), set_metadata("silent"))
    labels = np.zeros((50, 70), np.uint8)
    labels[:, 20:] = 2
    sample = build_mapper(cfg)(_record(tmp_path, labels))
    assert sample["instances"].gt_classes.tolist() == [2]
    assert set(sample["sem_seg"].unique().tolist()) == {2, 255}
    cfg.DATASETS.TRAIN = ("zero_is_void", set_metadata("nine_is_void", ignore_label=9))
    with pytest.raises(ValueError, match="zero_is_void: 0, nine_is_void: 9"):
        build_mapper(cfg)
    assert not MaskFormerSemanticDatasetMapper(cfg, False).is_train  # inference has no say in that


@pytest.mark.parametrize("name", ["mask_former_semantic", "mask_former_panoptic"])
def test_labels_outside_the_classes_name_file_and_value(cfg: CfgNode, tmp_path: Path, name: str) -> None:
    labels = np.zeros((50, 70), np.uint8)
    labels[49, 69], labels[:10] = 77, 255
    record = _panoptic(tmp_path, labels)
    cfg.merge_from_list(["INPUT.DATASET_MAPPER_NAME", name, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.9])
    message = r"labels\.png: the label of 1 pixels, for example 77, is not a class index in \[0, 3\)"
    with pytest.raises(BadRecordError, match=message):
        build_mapper(cfg)(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sem_seg_file_name": None}, "training sample has no 'sem_seg_file_name'"),
        ({"sem_seg_file_name": "absent.png"}, r"absent\.png: the file does not exist"),
        ({"sem_seg_file_name": "image.png"}, r"image\.png: .*one channel.* RGB"),
        ({"sem_seg_file_name": "small.png"}, r"small\.png: is \[8, 9\] \(height, width\), its image"),
        ({"file_name": "absent.png"}, r"absent\.png: the file does not exist"),
    ],
)
def test_bad_records_are_named(cfg: CfgNode, tmp_path: Path, labels: np.ndarray, change: Record, message: str) -> None:
    record = _record(tmp_path, labels)
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "small.png")
    changed = {key: value and str(tmp_path / value) for key, value in change.items()}
    with pytest.raises(BadRecordError, match=message):
        build_mapper(cfg)({**record, **changed})


def test_the_order_of_the_augmentations(cfg: CfgNode) -> None:
    cfg.merge_from_list(["INPUT.COLOR_AUG_SSD", True, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75])
    for name, crop in (
        ("mask_former_instance", "RandomCrop"),  # no category limit
        ("mask_former_semantic", "RandomCrop_CategoryAreaConstraint"),
        ("mask_former_panoptic", "RandomCrop_CategoryAreaConstraint"),
    ):
        mapper = mask2former.data.dataset_mappers.MAPPERS[name](cfg, True)
        augmentations, (padding,) = mapper.augmentations, mapper.padding()
        assert [type(a).__name__ for a in augmentations] == ["ResizeShortestEdge", crop, "ColorAugSSD", "RandomFlip"]
        if name != "mask_former_instance":
            assert augmentations[1].single_category_max_area == 0.75
            assert augmentations[1].ignored_category == 255
        assert padding.side == 56 and padding.label_value == (255 if name == "mask_former_semantic" else 0)
