from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, polygons_to_bitmask
from PIL import Image

from mask2former.data import (
    BadRecordError,
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    SegmentationMapper,
    build_mapper,
    load_coco_json,
)
from mask2former.data.dataset_mappers import InstanceTargets, PanopticTargets, Targets
from mask2former.data.datasets.coco import load_coco_panoptic

from ..panoptic_sample import HEIGHT, WIDTH, PanopticSample

Records = list[dict[str, Any]]


@pytest.fixture
def records(write: Callable[[], tuple[Path, Path]]) -> Records:
    path, directory = write()
    return load_coco_json(str(path), str(directory))


@pytest.fixture
def panoptic_record(tmp_path: Path) -> dict[str, Any]:
    """An image 40x32 of four segments, one of them crowd, one in the far corner, and void."""
    ids = np.zeros((32, 40), np.int32)
    ids[:16], ids[16:28, :20], ids[16:28, 20:], ids[30:, 38:] = 70000, 5, 900, 31
    png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(png).save(tmp_path / "ids.png")
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(tmp_path / "image.png")
    segments = [
        {"id": 70000, "category_id": 1, "isthing": False, "iscrowd": 0},
        {"id": 5, "category_id": 0, "isthing": True, "iscrowd": 0},
        {"id": 900, "category_id": 0, "isthing": True, "iscrowd": 1},
        {"id": 31, "category_id": 0, "isthing": True, "iscrowd": 0},
    ]
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 1,
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": segments,
    }


def _mapper(targets: Targets, *augmentations: Any) -> SegmentationMapper:
    return SegmentationMapper(True, augmentations=augmentations, targets=targets)


@pytest.mark.parametrize("name", ["coco_instance_lsj", "mask_former_instance"])
@pytest.mark.parametrize("extras", [False, True])
def test_instance_samples(data_cfg: CfgNode, records: Records, name: str, extras: bool) -> None:
    settings = [
        "INPUT.DATASET_MAPPER_NAME",
        name,
        "INPUT.MIN_SIZE_TRAIN",
        (32, 64),
        "INPUT.SIZE_DIVISIBILITY",
        64,
    ]
    settings += ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [48, 48]]
    data_cfg.merge_from_list([*settings, "INPUT.COLOR_AUG_SSD", extras, "INPUT.RANDOM_ROT90", extras])
    mapper = build_mapper(data_cfg, True)
    before = copy.deepcopy(records)
    np.random.seed(0)
    for _ in range(5):
        for record in records:
            sample = mapper(record)
            side = 48 if name == "coco_instance_lsj" else 64
            assert sample["image"].shape == (3, side, side) and sample["image"].dtype == torch.uint8
            assert sample["image"].is_contiguous()
            instances = sample["instances"]
            assert instances.image_size == (side, side)
            assert instances.gt_masks.dtype == torch.bool
            assert instances.gt_masks.shape == (len(instances), side, side)
            assert instances.gt_classes.dtype == torch.int64 and len(instances) <= 2
            shown = instances.gt_masks.flatten(1).any(1)
            assert torch.equal(instances.gt_boxes.nonempty(), shown)
            if name == "coco_instance_lsj":
                assert shown.all(), "objects outside the crop are dropped"
            else:
                regular = [entry for entry in record["annotations"] if not entry.get("iscrowd")]
                assert instances.gt_classes.tolist() == [entry["category_id"] for entry in regular], "they are kept"
            assert sample["height"] == 32 and sample["width"] == 40 and "annotations" not in sample
    assert records == before


@pytest.mark.parametrize("drawn", range(8))
def test_all_forms_of_a_mask_follow_the_image(tmp_path: Path, data_cfg: CfgNode, drawn: int) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[8:24, 12:44] = 255
    bitmap = image[:, :, 0] > 0
    Image.fromarray(image).save(tmp_path / "a.png")
    code = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    box = [[12, 8, 44, 8, 44, 24, 12, 24]]
    annotations = [{"category_id": 0, "segmentation": form} for form in (box, code, bitmap)]
    record = {"file_name": str(tmp_path / "a.png"), "annotations": annotations}
    data_cfg.merge_from_list(["INPUT.RANDOM_ROT90", True, "INPUT.MIN_SCALE", 1.0])
    np.random.seed(drawn)
    sample = build_mapper(data_cfg, True)(record)
    bright = sample["image"].float().mean(0) / 255
    masks = sample["instances"].gt_masks
    assert len(masks) == 3
    for mask in masks:
        wrong = (mask & (bright < 0.2)) | (~mask & (bright > 0.8))
        assert wrong.float().mean() < 0.001
        assert mask.sum() > 0


def test_polygons_equal_detectron2s_without_a_crop(records: Records) -> None:
    resize = T.ResizeTransform(32, 40, 57, 61)
    sample = _mapper(InstanceTargets(), resize, T.HFlipTransform(61))(records[2])
    polygon = np.array(records[2]["annotations"][0]["segmentation"][0], dtype=np.float64).reshape(-1, 2)
    points = T.HFlipTransform(61).apply_coords(resize.apply_coords(polygon))
    expected = polygons_to_bitmask([points.reshape(-1)], 57, 61)
    np.testing.assert_array_equal(sample["instances"].gt_masks[0].numpy(), expected)


def test_empty_image_gives_no_objects(data_cfg: CfgNode, records: Records) -> None:
    instances = build_mapper(data_cfg, True)(records[5])["instances"]
    assert len(instances) == 0 and instances.gt_masks.shape == (0, 48, 48)
    assert instances.gt_masks.dtype == torch.bool and instances.gt_boxes.tensor.shape == (0, 4)


def test_objects_outside_the_crop_are_dropped(records: Records) -> None:
    crop = T.CropTransform(0, 0, 20, 16)  # above the bar
    instances = _mapper(InstanceTargets(), crop)(records[0])["instances"]
    assert instances.gt_classes.tolist() == [1]
    assert instances.gt_boxes.tensor.tolist() == [[5, 4, 14, 13]]


@pytest.mark.parametrize("keep", [True, False])
def test_mask_former_instance_keeps_vanished_objects_unless_told_otherwise(
    data_cfg: CfgNode, records: Records, keep: bool
) -> None:
    data_cfg.merge_from_list(["INPUT.KEEP_EMPTY_INSTANCES", keep, "INPUT.DATASET_MAPPER_NAME", "mask_former_instance"])
    for mapper in (build_mapper(data_cfg), MaskFormerInstanceDatasetMapper(data_cfg, True)):
        mapper.tfm_gens = [T.CropTransform(0, 0, 20, 16)]  # above the bar
        instances = mapper(records[0])["instances"]
        assert instances.gt_classes.tolist() == ([1, 0] if keep else [1])
        assert instances.gt_masks.flatten(1).any(1).tolist() == ([True, False] if keep else [True])
        assert instances.gt_boxes.tensor.tolist()[1:] == ([[0, 0, 0, 0]] if keep else [])
    data_cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    mapper = build_mapper(data_cfg)
    mapper.tfm_gens = [T.CropTransform(0, 0, 20, 16)]
    assert len(mapper(records[0])["instances"]) == 1, "that one always drops them"


def test_panoptic_targets(panoptic_record: dict[str, Any]) -> None:
    sample = _mapper(PanopticTargets(), T.HFlipTransform(40))(panoptic_record)
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [1, 0, 0]
    assert instances.gt_masks.flatten(1).sum(1).tolist() == [640, 240, 4]
    assert instances.gt_boxes.tensor[1].tolist() == [20, 16, 40, 28]
    assert sample["height"] == 32 and "pan_seg_file_name" not in sample
    assert sample["segments_info"] == panoptic_record["segments_info"]
    assert sample["segments_info"][0] is not panoptic_record["segments_info"][0], "the record is not shared"


def test_panoptic_keeps_vanished_segments_unless_told_otherwise(
    panoptic_record: dict[str, Any], data_cfg: CfgNode
) -> None:
    crop = T.CropTransform(0, 0, 30, 20)
    kept = _mapper(PanopticTargets(), crop)(panoptic_record)["instances"]
    assert kept.gt_masks.flatten(1).any(1).tolist() == [True, True, False]
    assert kept.gt_boxes.tensor[2].tolist() == [0, 0, 0, 0]
    assert len(_mapper(PanopticTargets(drop_empty=True), crop)(panoptic_record)["instances"]) == 2
    assert not COCOPanopticNewBaselineDatasetMapper(data_cfg, True).targets.drop_empty


def test_panoptic_padding_belongs_to_nobody(panoptic_record: dict[str, Any], data_cfg: CfgNode) -> None:
    data_cfg.merge_from_list(["INPUT.MIN_SCALE", 0.5, "INPUT.MAX_SCALE", 0.5])
    sample = COCOPanopticNewBaselineDatasetMapper(data_cfg)(panoptic_record)
    assert (sample["image"][:, 24:] == 128).all()
    assert not sample["instances"].gt_masks[:, 24:].any()
    assert sample["instances"].gt_masks[0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "/nowhere/a.png"}, "/nowhere/a.png: the file does not exist"),
        ({"file_name": None}, "no valid file name"),
        ({"height": 31}, "its record says 40x31"),
        ({"annotations": None}, "training sample has no 'annotations'"),
        ({"annotations": ["x"]}, "annotation number 0: is not a dictionary"),
        (
            {"annotations": [{"id": 4, "category_id": 2, "segmentation": []}]},
            r"annotation 4: category_id 2 is not a class index in \[0, 2\)",
        ),
        (
            {"annotations": [{"id": 4, "category_id": "a", "segmentation": []}]},
            r"annotation 4: category_id 'a' is not a class index in \[0, 2\)",
        ),
        ({"annotations": [{"id": 4, "category_id": 1, "segmentation": [[1, 2]]}]}, "annotation 4: polygon 0"),
        ({"annotations": [{"id": 4, "category_id": 1}]}, "annotation 4: the segmentation is missing"),
    ],
)
def test_bad_records_are_named(data_cfg: CfgNode, records: Records, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecordError, match=message):
        build_mapper(data_cfg, True)({**records[0], **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments_info": None}, "training sample has no 'segments_info'"),
        ({"pan_seg_file_name": None}, "training sample has no 'pan_seg_file_name'"),
        ({"segments_info": [3]}, "entry 0 of segments_info: is not a dictionary"),
        ({"segments_info": [{"id": 0, "category_id": 0}]}, "segment 0: segment id is not an integer above 0"),
        ({"segments_info": [{"id": 5, "category_id": 9}]}, r"segment 5: category_id 9 is not a class .* \[0, 2\)"),
        ({"pan_seg_file_name": "absent.png"}, r"absent\.png: the file does not exist"),
    ],
)
def test_bad_panoptic_records_are_named(panoptic_record: dict[str, Any], change: dict[str, Any], message: str) -> None:
    mapper = _mapper(PanopticTargets(num_classes=2))
    with pytest.raises(BadRecordError, match=message):
        mapper({**panoptic_record, **change})


def test_panoptic_png_of_another_size(panoptic_record: dict[str, Any], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "ids.png")
    with pytest.raises(BadRecordError, match=r"ids\.png: is \[8, 8\]"):
        _mapper(PanopticTargets())(panoptic_record)


def test_inference_equals_detectron2s_mapper(data_cfg: CfgNode, records: Records) -> None:
    data_cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 50])
    ours = build_mapper(data_cfg, False)(records[0])
    theirs = DatasetMapper(data_cfg, False)(records[0])
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours.pop("image"), theirs.pop("image"))
    assert ours == theirs


def test_mapper_names(data_cfg: CfgNode) -> None:
    data_cfg.INPUT.DATASET_MAPPER_NAME = "coco_instances_lsj"
    with pytest.raises(ValueError, match="Did you mean 'coco_instance_lsj'"):
        build_mapper(data_cfg, True)
    assert not build_mapper(data_cfg, False).is_train
    for mapper_class in (
        COCOInstanceNewBaselineDatasetMapper,
        COCOPanopticNewBaselineDatasetMapper,
        MaskFormerInstanceDatasetMapper,
    ):
        assert mapper_class(data_cfg).is_train
        assert not mapper_class(data_cfg, is_train=False).is_train


def test_lsj_distribution(data_cfg: CfgNode) -> None:
    """Order and parameters of the published recipe; the crop lies on the diagonal."""
    names = [type(aug).__name__ for aug in COCOInstanceNewBaselineDatasetMapper(data_cfg).augmentations]
    assert names == ["RandomFlip", "ResizeScale", "FixedSizeCrop"]
    np.random.seed(0)
    offsets = []
    for _ in range(40):
        augmentations = T.AugmentationList(COCOInstanceNewBaselineDatasetMapper(data_cfg).augmentations)
        transforms = augmentations(T.AugInput(np.zeros((60, 60, 3), np.uint8))).transforms
        crop = next(transform for transform in transforms if isinstance(transform, T.CropTransform))
        offsets.append((crop.x0, crop.y0))
    assert all(x == y for x, y in offsets) and len(set(offsets)) > 10


@pytest.mark.parametrize("name", ["coco_instance_lsj", "mask_former_instance"])
def test_all_types_of_annotations_at_once(data_cfg: CfgNode, panoptic_sample: PanopticSample, name: str) -> None:
    """COCO's three types in one image: polygons of several rings, uncompressed RLE of a crowd, compressed RLE."""
    truths = [row for row in panoptic_sample.truths() if row[0] == "000000000017.png"]
    rings = [[2.0, 2.0, 9.0, 2.0, 9.0, 9.0], [20.0, 20.0, 30.0, 20.0, 30.0, 31.5, 20.0, 31.5]]
    annotations: list[dict[str, Any]] = [{"segmentation": rings, "iscrowd": 0, "category_id": 0}]
    for _, segment, mask in truths:
        code: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        if segment["iscrowd"]:
            edges = np.flatnonzero(np.diff(mask.T.reshape(-1).astype(int), prepend=0))
            code = {"size": [HEIGHT, WIDTH], "counts": np.diff(edges, prepend=0, append=HEIGHT * WIDTH).tolist()}
        annotations.append({"segmentation": code, "iscrowd": segment["iscrowd"], "category_id": 1})
    record = {
        "file_name": str(panoptic_sample.image_dir / "000000000017.jpg"),
        "image_id": 17,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [{**entry, "bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS} for entry in annotations],
    }
    instances = _mapper(InstanceTargets(num_classes=2))(record)["instances"]
    regular = [mask for _, segment, mask in truths if not segment["iscrowd"]]
    assert instances.gt_classes.tolist() == [0] + [1] * len(regular) and len(regular) == 5
    assert np.array_equal(instances.gt_masks[1:].numpy(), np.stack(regular))
    assert 0.8 < int(instances.gt_masks[0].sum()) / (7 * 7 / 2 + 10 * 11.5) < 1.2

    data_cfg.merge_from_list(["INPUT.DATASET_MAPPER_NAME", name])
    mapper = build_mapper(data_cfg, True)
    np.random.seed(0)
    counts = [len(mapper(record)["instances"]) for _ in range(10)]
    assert 0 < max(counts) <= 6


def test_panoptic_segments_have_the_areas_of_the_file(panoptic_sample: PanopticSample) -> None:
    sample = panoptic_sample
    records = load_coco_panoptic("sample", str(sample.image_dir), str(sample.panoptic_dir), str(sample.json_file))
    mapper = _mapper(PanopticTargets(num_classes=133))
    assert len(records) == 2
    for record in records:
        instances = mapper(record)["instances"]
        areas = instances.gt_masks.flatten(1).sum(1).tolist()
        assert areas == [segment["area"] for segment in record["segments_info"] if not segment["iscrowd"]]
        assert len(areas) == 5 and instances.gt_masks.sum(0).max() == 1
