from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from PIL import ExifTags, Image
from torch.utils.data import DataLoader

from mask2former.data import BadRecordError, build_test_loader, build_train_loader, skipped_records
from mask2former.data.build import with_mask_bits
from mask2former.structures.mask_bits import MaskBits

Write = Callable[[], tuple[Path, Path]]


@pytest.fixture
def cfg(write: Write, data_cfg: CfgNode) -> CfgNode:
    path, directory = write()
    data_cfg.DATASETS.COCO_JSON = [["tiny", str(path), str(directory)]]
    data_cfg.DATASETS.TRAIN = ("tiny",)
    data_cfg.DATASETS.TEST = ("tiny",)
    data_cfg.INPUT.COLOR_AUG_SSD = True
    return data_cfg


def _fingerprint(loader: Any, count: int) -> list[tuple]:
    return [
        (
            sample["image_id"],
            sample["image"].numpy().tobytes(),
            sample["instances"].gt_masks.numpy().tobytes(),
        )
        for batch in islice(loader, count)
        for sample in batch
    ]


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_loader_continues_with_the_same_samples(cfg: CfgNode, grouping: bool, workers: int) -> None:
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.ACCUMULATION_STEPS = 2
    complete = _fingerprint(build_train_loader(cfg), 12)
    assert len(set(complete)) == len(complete) == 24  # never the same augmentation twice
    cfg.DATALOADER.NUM_WORKERS = workers
    resumed = _fingerprint(build_train_loader(cfg, start_iteration=3), 6)
    assert resumed == complete[12:]


@pytest.mark.parametrize("workers", [0, 2])
def test_bits_of_masks_are_those_of_the_same_samples(cfg: CfgNode, workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(cfg)
    expected = _fingerprint(loader, 4)
    samples = [sample for batch in islice(with_mask_bits(loader), 4) for sample in batch]
    for sample in samples:
        assert isinstance(sample["instances"].gt_masks, MaskBits)
        sample["instances"].gt_masks = sample["instances"].gt_masks.unpacked()
    found = [(s["image_id"], s["image"].numpy().tobytes(), s["instances"].gt_masks.numpy().tobytes()) for s in samples]
    assert found == expected == _fingerprint(loader, 4)  # the loader itself has not changed


def test_samples_of_a_mapper_stay_as_they_are(cfg: CfgNode) -> None:
    masks = torch.rand(2, 3, 5) > 0.5
    image, no_masks = Instances((3, 5), gt_masks=masks), Instances((3, 5), gt_classes=torch.zeros(2))
    kept = [{"instances": [Instances((3, 5), gt_masks=BitMasks(masks))]}, {"instances": image}, {"instances": no_masks}]
    others = [{"instances": Instances((3, 5), gt_masks=value)} for value in (BitMasks(masks), masks.float())]
    samples = iter([*kept, *others, {"sem_seg": masks[0]}])
    cfg.SOLVER.IMS_PER_BATCH = 6
    (batch,) = islice(with_mask_bits(build_train_loader(cfg, lambda record: next(samples))), 1)
    (frame,) = batch[0]["instances"]
    assert all(torch.equal(each.gt_masks.unpacked(), masks) for each in (frame, batch[1]["instances"]))
    assert isinstance(kept[0]["instances"][0].gt_masks, BitMasks) and image.gt_masks is masks
    # What the model would not get back as it was is not packed.
    assert batch[2]["instances"] is no_masks and batch[5]["sem_seg"] is not None
    assert [batch[i]["instances"] is others[i - 3]["instances"] for i in (3, 4)] == [True, True]


class _LazySample(dict):
    """Computes a value when it is read."""


class _NamedInstances(Instances):
    """Has more than its fields."""


def test_only_what_a_copy_keeps_is_packed(cfg: CfgNode) -> None:
    masks = torch.rand(2, 3, 5) > 0.5
    kept: list[Any] = [
        _LazySample(instances=Instances((3, 5), gt_masks=masks)),
        {"instances": _NamedInstances((3, 5), gt_masks=masks)},
        {"instances": [_NamedInstances((3, 5), gt_masks=masks)]},
        *({"instances": Instances((3, 5), gt_masks=each)} for each in (masks[0], masks[:0, 0, 0], masks.to_sparse())),
    ]
    samples = iter(kept)
    cfg.SOLVER.IMS_PER_BATCH = len(kept)
    (batch,) = islice(with_mask_bits(build_train_loader(cfg, lambda record: next(samples))), 1)
    assert batch[0] is kept[0] and batch[2]["instances"][0] is kept[2]["instances"][0]
    assert all(batch[i]["instances"] is kept[i]["instances"] for i in (1, 3, 4, 5))


def test_a_collation_of_the_user_stays(cfg: CfgNode) -> None:
    loader = build_train_loader(cfg)
    loader.collate_fn = lambda samples: [{"image_id": sample["image_id"], "mixed": True} for sample in samples]
    (batch,) = islice(with_mask_bits(loader), 1)
    assert all(sample["mixed"] for sample in batch)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loader_of_the_user_may_have_the_parts(cfg: CfgNode, persistent: bool) -> None:
    ours = build_train_loader(cfg)
    expected = _fingerprint(ours, 3)
    parts: dict[str, Any] = {"batch_sampler": ours.batch_sampler, "collate_fn": ours.collate_fn}
    theirs = DataLoader(ours.dataset, num_workers=1, persistent_workers=persistent, **parts)
    assert _fingerprint(theirs, 3) == expected
    batch = next(iter(theirs))
    assert len(batch) == len(list(batch)) and batch[-1] is list(batch)[-1]


def _threads(record: Any) -> dict[str, Any]:
    for _ in range(3):  # operations in parallel, whose threads a forked worker has not
        cv2.resize(np.zeros((4000, 4000, 3), np.uint8), (1500, 1500), interpolation=cv2.INTER_CUBIC)
    return {"threads": (cv2.getNumThreads(), torch.get_num_threads())}


@pytest.mark.parametrize("build", [build_train_loader, lambda cfg, mapper: build_test_loader(cfg, "tiny", mapper)])
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_keep_to_their_core(cfg: CfgNode, build: Any, start: str) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        for workers, expected in ((0, 4), (1, 1)):
            cfg.DATALOADER.NUM_WORKERS = workers
            loader = build(cfg, _threads)
            if workers:
                loader.multiprocessing_context, loader.timeout = start, 60
            (batch,) = islice(loader, 1)
            assert batch[0]["threads"][0] == expected
        assert batch[0]["threads"] == (1, 1) and cv2.getNumThreads() == 4
        assert "OPENCV_FOR_THREADS_NUM" not in os.environ
    finally:
        cv2.setNumThreads(before)


def test_other_loaders_yield_what_they_yield() -> None:
    loader = [[{"instances": None}]]
    assert with_mask_bits(loader) is loader


@pytest.mark.filterwarnings("error:This DataLoader will create")
def test_more_workers_than_cores_change_nothing(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)  # PyTorch asks it, too
    samples = _fingerprint(build_train_loader(cfg), 6)
    cfg.DATALOADER.NUM_WORKERS = 5
    train, test = build_train_loader(cfg), build_test_loader(cfg, "tiny")
    assert (train.num_workers, test.num_workers) == (2, 2)
    assert _fingerprint(train, 6) == samples
    assert [sample["image_id"] for [sample] in test] == [10, 11, 12, 13, 14, 15]


@pytest.fixture
def unsized(tmp_path: Path) -> Iterator[str]:
    """Records without sizes: two upright images, one of them by EXIF, two wide ones, and one that is no image."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for name, size, exif in (
        ("0", (20, 30), {}),
        ("1", (30, 20), {"exif": turned}),
        ("2", (30, 20), {}),
        ("3", (31, 20), {}),
    ):
        Image.new("RGB", size).save(tmp_path / f"{name}.jpg", **exif)
        Image.new("L", size[::-1] if exif else size, 1).save(tmp_path / f"{name}.png")
    (tmp_path / "4.jpg").write_bytes(b"no image")
    pairs = [(str(tmp_path / f"{name}.jpg"), str(tmp_path / f"{name}.png")) for name in range(5)]
    records = [{"file_name": image, "sem_seg_file_name": labels} for image, labels in pairs]
    DatasetCatalog.register("unsized", lambda: records)
    yield "unsized"
    DatasetCatalog.remove("unsized")
    MetadataCatalog.remove("unsized")


def test_records_without_sizes_are_grouped_by_the_sizes_of_their_images(
    data_cfg: CfgNode, unsized: str, caplog: pytest.LogCaptureFixture
) -> None:
    data_cfg.merge_from_list(["DATASETS.TRAIN", (unsized,), "INPUT.DATASET_MAPPER_NAME", "mask_former_semantic"])
    data_cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "INPUT.CROP.ENABLED", False, "SEED", 3])
    data_cfg.DATALOADER.SKIP_BAD_RECORDS = True
    data_cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    loader = build_train_loader(data_cfg)
    assert loader.batch_sampler.groups.tolist() == [0, 0, 1, 1, 0]
    assert "ASPECT_RATIO_GROUPING: the size of 1 images cannot be read; they count as upright" in caplog.text
    data_cfg.SOLVER.IMS_PER_BATCH = 1
    assert build_train_loader(data_cfg).batch_sampler.groups is None, "nothing to group"


def test_no_size_at_all_is_a_warning(
    data_cfg: CfgNode, unsized: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in tmp_path.glob("*.jpg"):
        path.write_bytes(b"no image")
    data_cfg.merge_from_list(["DATASETS.TRAIN", (unsized,), "INPUT.DATASET_MAPPER_NAME", "mask_former_semantic"])
    data_cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.ASPECT_RATIO_GROUPING", True])
    assert build_train_loader(data_cfg).batch_sampler.groups is None
    assert "ASPECT_RATIO_GROUPING has no effect: no size of an image can be read" in caplog.text


def test_seed_decides(cfg: CfgNode) -> None:
    first = _fingerprint(build_train_loader(cfg, seed=1), 3)
    assert first == _fingerprint(build_train_loader(cfg, seed=1), 3)
    assert first != _fingerprint(build_train_loader(cfg, seed=2), 3)
    cfg.SEED = -1
    assert len(_fingerprint(build_train_loader(cfg), 1)) == 2


def test_loading_leaves_the_random_state_of_the_process_alone(cfg: CfgNode) -> None:
    before = torch.get_rng_state()
    _fingerprint(build_train_loader(cfg), 2)
    list(build_test_loader(cfg, "tiny"))
    assert torch.equal(torch.get_rng_state(), before)


def test_empty_images_are_filtered_on_request(cfg: CfgNode) -> None:
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert len(build_train_loader(cfg).dataset) == 5
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(build_train_loader(cfg).dataset) == 6


def test_samplers(cfg: CfgNode) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    assert len(_fingerprint(build_train_loader(cfg), 4)) == 8
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.4
    assert len({name for name, *_ in _fingerprint(build_train_loader(cfg), 10)}) == 2
    cfg.DATALOADER.SAMPLER_TRAIN = "Nonsense"
    with pytest.raises(ValueError, match=r"DATALOADER\.SAMPLER_TRAIN 'Nonsense'"):
        build_train_loader(cfg)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_stop_or_are_skipped(
    cfg: CfgNode, tiny_content: Any, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    (tiny_content[1] / "1.png").unlink()
    (tiny_content[1] / "2.png").write_bytes(b"broken")
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(BadRecordError, match=r"(1|2)\.png: (the file does not exist|cannot be read)"):
        _fingerprint(build_train_loader(cfg), 12)
    cfg.DATALOADER.SKIP_BAD_RECORDS = True
    loader = build_train_loader(cfg)
    with caplog.at_level(logging.WARNING):
        samples = _fingerprint(loader, 12)
    assert len(samples) == 24 and {name for name, *_ in samples} == {10, 13, 14}
    assert skipped_records(loader) >= 4
    if workers:
        assert samples[:24] == _fingerprint_without_workers(cfg)
    else:
        assert caplog.text.count("bad record skipped") == 2  # once for each file


def _fingerprint_without_workers(cfg: CfgNode) -> list[tuple]:
    cfg.DATALOADER.NUM_WORKERS = 0
    return _fingerprint(build_train_loader(cfg), 12)


def test_bad_annotations_are_skipped_too(cfg: CfgNode, tiny_content: Any, write: Write) -> None:
    annotations = tiny_content[2]["annotations"]
    annotations[0]["category_id"] = 55  # found when the file is read
    Image.new("RGB", (8, 8)).save(tiny_content[1] / "1.png")  # found when the image is
    write()
    with pytest.raises(BadRecordError, match="category 55"):
        build_train_loader(cfg)
    cfg.DATALOADER.SKIP_BAD_RECORDS = True
    loader = build_train_loader(cfg)
    names = {name for name, *_ in _fingerprint(loader, 10)}
    assert names == {12, 13, 14} and skipped_records(loader) > 0


def test_nothing_usable_is_an_error_even_when_skipping(cfg: CfgNode, tiny_content: Any) -> None:
    for image in tiny_content[1].iterdir():
        image.unlink()
    cfg.DATALOADER.SKIP_BAD_RECORDS = True
    with pytest.raises(BadRecordError, match="in a row are bad"):
        next(iter(build_train_loader(cfg)))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_usable_image_once(cfg: CfgNode, tiny_content: Any, workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = workers
    assert [sample["image_id"] for [sample] in build_test_loader(cfg, "tiny")] == [10, 11, 12, 13, 14, 15]
    (tiny_content[1] / "1.png").unlink()
    with pytest.raises(BadRecordError, match=r"1\.png"):
        list(build_test_loader(cfg, "tiny"))
    cfg.DATALOADER.SKIP_BAD_RECORDS = True
    loader = build_test_loader(cfg, "tiny")
    assert [sample["image_id"] for [sample] in loader] == [10, 12, 13, 14, 15]
    assert skipped_records(loader) == 1


def test_settings_are_checked(cfg: CfgNode, tiny_content: Any, write: Write) -> None:
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS = 6, 4
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH 6 .*ACCUMULATION_STEPS \(4\)"):
        build_train_loader(cfg)
    cfg.SOLVER.ACCUMULATION_STEPS = 3
    with pytest.raises(ValueError, match="start_iteration"):
        build_train_loader(cfg, start_iteration=-1)
    cfg.DATASETS.TRAIN = ("tinny",)
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN: no dataset 'tinny' .* Did you mean 'tiny'"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="is empty"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("tiny",)
    tiny_content[2]["annotations"].clear()
    write()
    with pytest.raises(ValueError, match="FILTER_EMPTY_ANNOTATIONS"):
        build_train_loader(cfg)


def test_records_without_sizes_are_not_grouped(cfg: CfgNode, tiny_content: Any) -> None:
    files = sorted(tiny_content[1].iterdir())
    records = [{"file_name": str(file), "image_id": i, "annotations": []} for i, file in enumerate(files)]
    DatasetCatalog["sizeless"] = lambda: records
    try:
        cfg.DATASETS.TRAIN = ("sizeless",)
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        [first, _] = next(iter(build_train_loader(cfg)))
        assert (first["height"], first["width"]) == (32, 40)
    finally:
        DatasetCatalog.pop("sizeless")


def test_the_error_survives_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(BadRecordError("a.json", "broken", "annotation 3")))
    assert str(error) == "a.json: annotation 3: broken"
    assert (error.file, error.record, error.reason) == ("a.json", "annotation 3", "broken")


def _edited(tiny_content: Any, cfg: CfgNode, change: Any) -> CfgNode:
    """Return a config that trains on the tiny dataset after a change of its annotations."""
    file, images = tiny_content[:2]
    content = json.loads(Path(file).read_text())
    change(content)
    Path(file).write_text(json.dumps(content))
    cfg.DATASETS.COCO_JSON = [["nothing", str(file), str(images)]]
    cfg.DATASETS.TRAIN = ("nothing",)
    return cfg


def _all_crowd(content: Any) -> None:
    for entry in content["annotations"]:
        entry["iscrowd"] = 1


def _boxes(content: Any) -> None:
    for entry in content["annotations"]:
        entry["segmentation"] = []


@pytest.mark.parametrize("filter_empty", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_all_crowd, "15 are crowd regions"),
        (_boxes, "15 have no segmentation, but training needs masks"),
        (lambda content: content.pop("annotations"), "has no 'annotations'"),
    ],
)
def test_nothing_to_learn_is_an_error_before_the_start(
    cfg: CfgNode, tiny_content: Any, change: Any, reason: str, filter_empty: bool
) -> None:
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    with pytest.raises(ValueError, match=reason):
        build_train_loader(_edited(tiny_content, cfg, change))
