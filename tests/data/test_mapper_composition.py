"""Mappers composed of parts, derived from the five public classes, and imported from where programs expect them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from PIL import Image
from scipy import ndimage

import mask2former
from mask2former.data import SegmentationMapper, build_mapper
from mask2former.data.dataset_mappers import (
    MAPPERS,
    AugmentedImage,
    InstanceTargets,
    SemanticTargets,
    Targets,
    large_scale_jitter,
)
from mask2former.data.sampler import random_state

PATHS = {
    "coco_instance_new_baseline_dataset_mapper": "COCOInstanceNewBaselineDatasetMapper",
    "coco_panoptic_new_baseline_dataset_mapper": "COCOPanopticNewBaselineDatasetMapper",
    "mask_former_instance_dataset_mapper": "MaskFormerInstanceDatasetMapper",
    "mask_former_panoptic_dataset_mapper": "MaskFormerPanopticDatasetMapper",
    "mask_former_semantic_dataset_mapper": "MaskFormerSemanticDatasetMapper",
}


class ComponentTargets(Targets):
    """Every connected component of a black-and-white "mask_file" is an object of class 0."""

    def __init__(self) -> None:
        self.for_augmentations: list[bool] = []

    def label_map(self, record: dict[str, Any], size: tuple[int, int], for_augmentations: bool) -> np.ndarray:
        self.for_augmentations.append(for_augmentations)
        return np.asarray(Image.open(record["mask_file"])).astype(np.float32)

    def entries(self, record: dict[str, Any], image: AugmentedImage) -> dict[str, Any]:
        components, count = ndimage.label(image.label_map)
        instances = Instances(image.size)
        instances.gt_classes = torch.zeros(count, dtype=torch.int64)
        instances.gt_masks = torch.from_numpy(components == np.arange(1, count + 1)[:, None, None])
        return {"instances": instances, "file_size": image.file_size}


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image 40x30 with two white rectangles, the same as a mask file, and one of them as an annotation."""
    mask = np.zeros((30, 40), np.uint8)
    mask[4:14, 4:18] = mask[18:28, 22:36] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.repeat(mask[:, :, None], 3, axis=2)).save(tmp_path / "image.png")
    polygon = [[4, 4, 18, 4, 18, 14, 4, 14]]
    return {
        "file_name": str(tmp_path / "image.png"),
        "mask_file": str(tmp_path / "mask.png"),
        "annotations": [{"id": 1, "category_id": 1, "segmentation": polygon}],
    }


@pytest.mark.parametrize(("module", "name"), PATHS.items())
def test_the_five_mappers_are_where_programs_import_them(module: str, name: str) -> None:
    mapper_class = getattr(importlib.import_module(f"mask2former.data.dataset_mappers.{module}"), name)
    assert mapper_class.__module__.endswith(module), "defined there, not only imported"
    assert mapper_class is getattr(mask2former, name) and mapper_class in MAPPERS.values()


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_build_transform_gen_is_where_programs_import_it(data_cfg: CfgNode, kind: str) -> None:
    module = importlib.import_module(f"mask2former.data.dataset_mappers.coco_{kind}_new_baseline_dataset_mapper")
    names = [[type(a).__name__ for a in module.build_transform_gen(data_cfg, is_train)] for is_train in (True, False)]
    assert names == [["RandomFlip", "ResizeScale", "FixedSizeCrop"], ["ResizeShortestEdge"]]


def test_own_targets_with_the_augmentations_of_coco(data_cfg: CfgNode, record: dict[str, Any]) -> None:
    mapper = SegmentationMapper(augmentations=large_scale_jitter(data_cfg), targets=ComponentTargets())
    counts = set()
    for seed in range(20):
        with random_state(seed):
            sample = mapper(record)
        instances = sample["instances"]
        assert instances.gt_masks.shape == (len(instances), 48, 48) and sample["file_size"] == (30, 40)
        counts.add(len(instances))
        image, mask = sample["image"][0].numpy(), instances.gt_masks.any(0).numpy()
        # Resampling blurs the image beside an outline; padding is gray.
        assert (image[ndimage.binary_erosion(mask, iterations=3)] > 250).all()
        assert (image[~ndimage.binary_dilation(mask, iterations=3)] < 130).all()
    assert counts >= {1, 2}


def test_targets_know_whether_an_augmentation_reads_the_label_map(record: dict[str, Any]) -> None:
    for crop, reads in (
        (T.RandomCrop("absolute", (8, 8)), False),
        (T.RandomCrop_CategoryAreaConstraint("absolute", (8, 8), 0.9, 255), True),
    ):
        targets = ComponentTargets()
        SegmentationMapper(augmentations=[T.RandomFlip(), crop], targets=targets)(record)
        assert targets.for_augmentations == [reads]


def test_any_augmentation_goes_with_any_targets(record: dict[str, Any]) -> None:
    """The parts of two of the five mappers in a combination that none of them has."""
    half = T.ResizeTransform(30, 40, 15, 20)
    targets = SemanticTargets(num_classes=2, ignore_label=0)
    Image.fromarray(np.asarray(Image.open(record["mask_file"])) // 255).save(record["mask_file"])
    both = {**record, "sem_seg_file_name": record["mask_file"]}
    semantic = SegmentationMapper(augmentations=[half, T.HFlipTransform(20)], targets=targets)(both)
    instance = SegmentationMapper(augmentations=[half, T.HFlipTransform(20)], targets=InstanceTargets(2))(both)
    assert semantic["instances"].gt_classes.tolist() == instance["instances"].gt_classes.tolist() == [1]
    assert semantic["instances"].gt_masks.sum() == 2 * 5 * 7
    covered = semantic["sem_seg"] == 1
    assert torch.equal(covered, semantic["instances"].gt_masks[0])
    assert (semantic["sem_seg"][~covered] == 255).all()
    assert torch.equal(covered[:, 10:], instance["instances"].gt_masks[0, :, 10:]) and "sem_seg" not in instance
    assert torch.equal(semantic["image"], instance["image"])


@pytest.mark.parametrize("name", PATHS.values())
def test_from_config_may_be_extended(data_cfg: CfgNode, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As programs do that derive from the reference implementation."""
    key = "tfm_gens" if name.startswith("COCO") else "augmentations"

    class Derived(getattr(mask2former, name)):
        @classmethod
        def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
            arguments = super().from_config(cfg, is_train)
            return {**arguments, key: [T.RandomBrightness(0.8, 1.2), *arguments[key]], "image_format": "BGR"}

    monkeypatch.setitem(MAPPERS, "derived", Derived)
    data_cfg.INPUT.DATASET_MAPPER_NAME = "derived"
    mapper = build_mapper(data_cfg, True)
    assert isinstance(mapper, Derived) and mapper.image_format == "BGR"
    theirs = getattr(mask2former, name)(data_cfg)
    names = [[type(augmentation).__name__ for augmentation in one.augmentations] for one in (mapper, theirs)]
    assert names[0] == ["RandomBrightness", *names[1]] and len(names[1]) > 1
    assert type(mapper.targets) is type(theirs.targets)
    assert not Derived(data_cfg, is_train=False).is_train


@pytest.mark.parametrize("name", PATHS.values())
def test_from_config_may_be_replaced(data_cfg: CfgNode, record: dict[str, Any], name: str) -> None:
    """The arguments of the reference implementation suffice; padding comes after the augmentations."""
    Image.fromarray(np.asarray(Image.open(record["mask_file"])) // 255).save(record["mask_file"])
    ids = np.asarray(Image.open(record["mask_file"]))
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=2)).save(record["mask_file"] + "ids.png")
    record.update(sem_seg_file_name=record["mask_file"], pan_seg_file_name=record["mask_file"] + "ids.png")
    record["segments_info"] = [{"id": 1, "category_id": 1}]

    class Derived(getattr(mask2former, name)):
        @classmethod
        def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
            flip = [T.HFlipTransform(40)]
            if name.startswith("COCO"):
                return {"is_train": is_train, "tfm_gens": flip, "image_format": "RGB"}
            label = {} if "Instance" in name else {"ignore_label": 0}
            return {"augmentations": flip, "image_format": "RGB", "size_divisibility": 50, **label}

    sample = Derived(data_cfg)(record)
    side = {} if name.startswith("COCO") else {"height": 50, "width": 50}
    assert sample["image"].shape == (3, side.get("height", 30), side.get("width", 40))
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [1] and instances.image_size == tuple(sample["image"].shape[1:])
    assert instances.gt_masks[0, 4:14, 22:36].all()
    assert (sample["image"][:, 30:] == 128).all() and not instances.gt_masks[:, 30:].any()
    if "Semantic" in name:
        assert (sample["sem_seg"][30:] == 0).all()


def test_training_needs_targets(data_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="SegmentationMapper has no targets to train on"):
        SegmentationMapper(augmentations=[])
    with pytest.raises(NotImplementedError, match=r"INPUT\.DATASET_MAPPER_NAME"):
        SegmentationMapper(data_cfg, True)
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'RGBA'"):
        SegmentationMapper(False, augmentations=[], image_format="RGBA")
