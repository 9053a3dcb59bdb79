"""Pasted objects and empty images, alone and in the mappers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from mask2former.data import copy_paste
from mask2former.data.build import build_train_loader
from mask2former.data.copy_paste import EMPTY_KINDS, Scene, clouds, empty_image, paste_objects, random_empty_image
from mask2former.data.dataset_mappers import SegmentationMapper, build_mapper
from mask2former.data.dataset_mappers.composition import SceneComposer
from mask2former.data.dataset_mappers.targets import InstanceTargets
from mask2former.data.datasets import register_from_config
from mask2former.data.sampler import random_state
from mask2former.structures.masks import Patch, paste

SIZE = (30, 40)


def scene(*objects: tuple[int, int, int, int], level: int = 100) -> Scene:
    """Return a black scene of filled rectangles (top, left, height, width), the k-th of level `level` + k."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    patches = []
    for k, (top, left, height, width) in enumerate(objects):
        pixels[top : top + height, left : left + width] = level + k
        patches.append(Patch(top, left, np.ones((height, width), bool)))
    return Scene(pixels, list(range(len(objects))), patches)


def test_pasted_objects_bring_pixels_mask_and_class_and_hide_what_is_below() -> None:
    target, source = scene((5, 5, 12, 20), (20, 30, 8, 8)), scene((1, 1, 6, 9), (10, 10, 5, 4), level=200)
    before = target.pixels.copy()
    for seed in range(40):
        with random_state(0, seed):
            made = paste_objects(target, source, 6, (0.7, 1.4))
        masks = paste(made.patches, SIZE)
        assert len(made.classes) == len(made.patches) and (masks.sum(axis=0) <= 1).all()
        for label, mask in zip(made.classes, masks, strict=True):
            assert set(np.unique(made.pixels[mask])) <= {100 + label, 200 + label}  # never of two objects
            assert len(np.unique(made.pixels[mask])) == 1
        np.testing.assert_array_equal(masks.any(axis=0), made.pixels.any(axis=2))  # nothing pasted without a mask
        np.testing.assert_array_equal(target.pixels, before)
        assert [patch.bits.sum() for patch in target.patches] == [240, 64]


def test_number_and_size_of_the_pasted_objects() -> None:
    empty, source = Scene(np.zeros((200, 200, 3), np.uint8), [], []), scene((2, 3, 8, 12), level=200)
    counts, areas = set(), []
    for seed in range(200):
        with random_state(1, seed):
            made = paste_objects(empty, source, 3, (0.5, 2.0))
        counts.add(len(made.classes))
        areas += [int(patch.bits.sum()) for patch in made.patches]
    assert counts <= {0, 1, 2, 3} and {1, 2, 3} <= counts
    assert max(areas) <= 384 and max(areas) > 300 and sorted(areas)[len(areas) // 10] < 60  # 96 pixels x 1/4 to 4


def test_hidden_objects_go() -> None:
    target = scene((14, 19, 2, 2))
    source = Scene(np.full((*SIZE, 3), 200, np.uint8), [7], [Patch(1, 1, np.ones((28, 38), bool))])
    with random_state(0, 0):
        made = paste_objects(target, source, 1, (3.0, 3.0))
    assert made.classes == [7] and made.patches[0].bits.sum() > 500


def test_without_objects_to_copy_the_scene_stays() -> None:
    target = scene((1, 1, 4, 4))
    assert paste_objects(target, scene(), 3, (1.0, 1.0)) is target
    cut = scene((0, 4, 5, 5), (4, 0, 5, 5), (25, 4, 5, 5), (4, 35, 5, 5))
    assert paste_objects(target, cut, 3, (1.0, 1.0)) is target


@pytest.mark.parametrize("kind", EMPTY_KINDS)
def test_empty_images(kind: str) -> None:
    image = empty_image(kind, (12, 17), np.random.default_rng(0))
    assert image.shape == (12, 17, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, empty_image(kind, (12, 17), np.random.default_rng(0)))
    if kind in ("black", "white", "uniform"):
        assert (image == image[0, 0]).all()
    else:
        assert len(np.unique(image)) > 5


@pytest.mark.parametrize("size", [(256, 256), (120, 640), (520, 696)])
def test_clouds_have_no_edges(size: tuple[int, int]) -> None:
    spans = []
    for seed in range(40):
        image = clouds(size, np.random.default_rng(seed))
        assert image.shape == (*size, 3) and image.dtype == np.float32
        # An object of 3 levels with a sharp edge changes more from one pixel to the next.
        assert max(np.abs(np.diff(image, axis=axis)).max() for axis in (0, 1)) < 3
        spans.append(float(np.ptp(image[..., 1])))
    assert min(spans) < 8 and max(spans) > 40


def test_clouds_are_gray_or_tinted_dim_or_bright_noisy_or_not() -> None:
    images = [empty_image("clouds", (64, 96), np.random.default_rng(seed)) for seed in range(60)]
    assert all(image.shape == (64, 96, 3) and image.dtype == np.uint8 for image in images)
    gray = [bool((image == image[..., :1]).all()) for image in images]
    levels = [float(image.mean()) for image in images]
    assert 20 < sum(gray) < 40
    assert 10 < sum(level < 40 for level in levels) < 40 and sum(level > 150 for level in levels) > 8
    noise = [float(np.diff(image[..., 1].astype(np.float32), axis=1).std()) for image in images]
    assert min(noise) < 1 and 3 < max(noise) < 10


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
def test_clouds_of_few_pixels(size: tuple[int, int]) -> None:
    for seed in range(8):
        assert empty_image("clouds", size, np.random.default_rng(seed)).shape == (*size, 3)


def test_random_empty_images_are_clouds_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = random_empty_image((12, 17), np.random.default_rng(0))
    np.testing.assert_array_equal(first, random_empty_image((12, 17), np.random.default_rng(0)))
    kinds: list[str] = []
    monkeypatch.setattr(copy_paste, "empty_image", lambda kind, size, rng: kinds.append(kind))
    rng = np.random.default_rng(0)
    for _ in range(400):
        random_empty_image((2, 2), rng)
    assert 160 < kinds.count("clouds") < 240 and set(kinds) == set(EMPTY_KINDS)
    assert min(kinds.count(kind) for kind in EMPTY_KINDS) > 20


def test_unknown_empty_kind() -> None:
    with pytest.raises(ValueError, match="'red' is not one of black"):
        empty_image("red", (2, 2), np.random.default_rng(0))


@pytest.fixture
def training(data_cfg: CfgNode, write: Callable[[], tuple[Path, Path]]) -> CfgNode:
    path, directory = write()
    data_cfg.DATASETS.COCO_JSON = [["pasted", str(path), str(directory)]]
    data_cfg.DATASETS.TRAIN = ("pasted",)
    data_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    data_cfg.INPUT.MIN_SCALE = data_cfg.INPUT.MAX_SCALE = 1.0
    register_from_config(data_cfg, data_cfg.DATASETS.TRAIN)
    return data_cfg


def first_record(cfg: CfgNode) -> dict[str, Any]:
    record: dict[str, Any] = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    return record


@pytest.mark.parametrize("mapper_name", ["coco_instance_lsj", "mask_former_instance"])
def test_empty_samples_have_no_objects(training: CfgNode, mapper_name: str) -> None:
    training.merge_from_list(["INPUT.EMPTY_PROB", 1.0, "INPUT.DATASET_MAPPER_NAME", mapper_name])
    mapper, record = build_mapper(training), first_record(training)
    annotations = list(record["annotations"])
    with random_state(0, 0):
        sample = mapper(record)
    assert sample is not None and len(sample["instances"]) == 0 and (sample["height"], sample["width"]) == (32, 40)
    assert record["annotations"] == annotations


def test_empty_images_have_the_channels_of_the_format(training: CfgNode) -> None:
    training.INPUT.EMPTY_PROB = 1.0
    composer = SceneComposer.from_config(training)
    assert composer is not None
    colored = 0
    for position in range(12):
        images = []
        for image_format in ("RGB", "BGR"):
            with random_state(0, position):
                pixels = composer(first_record(training), InstanceTargets(1), image_format)[1]
            assert pixels is not None and pixels.flags.c_contiguous
            images.append(pixels)
        np.testing.assert_array_equal(images[0], images[1][..., ::-1])
        colored += int((images[0] != images[1]).any())
    assert colored > 2


@pytest.mark.parametrize("source", ["same", "other"])
def test_mappers_paste_objects_and_repeat_them_by_the_seed(training: CfgNode, source: str) -> None:
    training.merge_from_list(["INPUT.COPY_PASTE.PROB", 1.0, "INPUT.COPY_PASTE.SOURCE", source])
    training.INPUT.COPY_PASTE.OBJECTS = 4
    mapper = build_mapper(training)
    assert isinstance(mapper, SegmentationMapper)
    mapper.use_records(DatasetCatalog.get("pasted"))
    counts = []
    for seed in range(8):
        with random_state(0, seed):
            sample = mapper(first_record(training))
        with random_state(0, seed):
            again = mapper(first_record(training))
        assert torch.equal(sample["image"], again["image"])
        assert torch.equal(sample["instances"].gt_masks, again["instances"].gt_masks)
        assert int(sample["instances"].gt_masks.sum(dim=0).max()) <= 2  # those of the file may overlap
        counts.append(len(sample["instances"]))
    assert max(counts) > 2 and min(counts) >= 1  # the file has two


def test_copying_from_others_needs_the_records(training: CfgNode) -> None:
    training.INPUT.COPY_PASTE.PROB = 1.0
    with pytest.raises(ValueError, match="call use_records"):
        build_mapper(training)(first_record(training))


def test_the_loader_hands_over_the_records(training: CfgNode) -> None:
    training.merge_from_list(["INPUT.COPY_PASTE.PROB", 1.0, "INPUT.EMPTY_PROB", 0.3])
    batches = [batch for batch, _ in zip(build_train_loader(training), range(6), strict=False)]
    counts = [len(sample["instances"]) for batch in batches for sample in batch]
    assert 0 in counts and max(counts) > 2


def test_off_by_default(training: CfgNode) -> None:
    mapper = build_mapper(training)
    assert isinstance(mapper, SegmentationMapper) and mapper.composer is None
