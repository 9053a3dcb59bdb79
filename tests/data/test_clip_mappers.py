from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from mask2former.data import BadRecordError, build_mapper, build_train_loader, register_ytvis_json
from mask2former.data.dataset_mappers.clip_augmentation import clip_augmentations, start_clip
from mask2former.data.dataset_mappers.clip_mappers import sample_frames
from mask2former.data.datasets.ytvis_json import load_ytvis_json
from mask2former.data.sampler import random_state
from mask2former.video import CocoClipDatasetMapper, YTVISDatasetMapper

Records = list[dict[str, Any]]


@pytest.fixture
def records(write_videos: Callable[[], tuple[str, str]]) -> Records:
    """Videos 2 (3 frames), 4 (6 frames) and 9 (1 frame)."""
    return load_ytvis_json(*write_videos(), {3: 0, 7: 1})


def draw(mapper: Any, record: dict[str, Any], seed: int) -> dict[str, Any]:
    with random_state(seed):
        return mapper(record)


def frame_numbers(sample: dict[str, Any]) -> list[int]:
    return [int(Path(name).stem) for name in sample["file_names"]]


def test_frames_are_near_and_not_repeated() -> None:
    with random_state(1):
        drawn = [sample_frames(30, 4, 5) for _ in range(300)]
    assert all(len(set(frames)) == 4 and frames == sorted(frames) for frames in drawn)
    assert max(frames[-1] - frames[0] for frames in drawn) <= 10
    assert {frame for frames in drawn for frame in frames} == set(range(30))


@pytest.mark.parametrize(("length", "count", "reach"), [(1, 2, 20), (2, 5, 20), (3, 3, 0), (9, 7, 1)])
def test_short_videos_repeat_frames_evenly(length: int, count: int, reach: int) -> None:
    with random_state(2):
        for _ in range(20):
            frames = sample_frames(length, count, reach)
            times = Counter(frames)
            assert len(frames) == count and set(frames) <= set(range(length))
            assert max(times.values()) - min(times.values()) <= 1


def test_shuffled_frames() -> None:
    with random_state(3):
        drawn = [sample_frames(10, 3, 20, shuffle=True) for _ in range(50)]
    assert any(frames != sorted(frames) for frames in drawn) and all(len(set(f)) == 3 for f in drawn)


def test_objects_keep_their_rows(records: Records, video_cfg: CfgNode) -> None:
    mapper = YTVISDatasetMapper(video_cfg, True)
    seen = set()
    for seed in range(40):
        sample = draw(mapper, records[1], seed)
        frames = frame_numbers(sample)
        assert len(frames) == 2 and (sample["height"], sample["width"], sample["length"]) == (32, 40, 6)
        assert "annotations" not in sample and sample["video_id"] == 4
        shown = [[f < 4, f >= 2] for f in frames]  # of objects 1 and 2
        rows = [row for row in (0, 1) if any(s[row] for s in shown)]
        for t, (image, instances) in enumerate(zip(sample["image"], sample["instances"], strict=True)):
            assert image.dtype == torch.uint8 and image.shape[1:] == instances.image_size
            assert instances.gt_ids.tolist() == [row if shown[t][row] else -1 for row in rows]
            # The class is there in frames without the object, too (bar: 0, cell: 1).
            assert instances.gt_classes.tolist() == [(1, 0)[row] for row in rows]
            assert instances.gt_masks.tensor.dtype == torch.bool
            for row, mask in zip(rows, instances.gt_masks.tensor, strict=True):
                assert bool(mask.any()) == shown[t][row]
                if shown[t][row]:  # objects have the gray value 100 + 20 x annotation id
                    inside = image[0][mask].float()
                    assert (inside - (120 + 20 * row)).abs().median() <= 2
            seen.add(tuple(instances.gt_ids.tolist()))
    assert {(0,), (0, 1), (0, -1), (-1, 1), (1,)} <= seen


def test_one_size_and_one_flip_for_a_clip(records: Records, video_cfg: CfgNode) -> None:
    mapper = YTVISDatasetMapper(video_cfg, True)
    heights, flipped = set(), set()
    for seed in range(30):
        sample = draw(mapper, records[2], seed)  # the same frame twice
        first, second = sample["image"]
        assert torch.equal(first, second) and first.shape[1] in (24, 32, 48)
        heights.add(first.shape[1])
        # The object reaches from column 6 to 26 of 40.
        mask = sample["instances"][0].gt_masks.tensor[0]
        flipped.add(bool(mask.any(0).nonzero().float().mean() > mask.shape[1] / 2))
    assert heights == {24, 32, 48} and flipped == {True, False}


def test_range_of_sizes_and_flips_for_each_frame(records: Records, video_cfg: CfgNode) -> None:
    video_cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range_by_clip"
    video_cfg.INPUT.MIN_SIZE_TRAIN = (24, 48)
    video_cfg.INPUT.RANDOM_FLIP = "horizontal"
    mapper = YTVISDatasetMapper(video_cfg, True)
    samples = [draw(mapper, records[2], seed) for seed in range(30)]
    heights = {sample["image"][0].shape[1] for sample in samples}
    assert len(heights) > 8 and all(24 <= height <= 48 for height in heights)
    assert all(sample["image"][0].shape == sample["image"][1].shape for sample in samples)
    same = [torch.equal(*sample["image"]) for sample in samples]
    assert any(same) and not all(same)


def test_extra_augmentations_are_alike_in_all_frames(records: Records, video_cfg: CfgNode) -> None:
    video_cfg.INPUT.AUGMENTATIONS = ["brightness", "contrast", "saturation", "rotation"]
    video_cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    mapper = YTVISDatasetMapper(video_cfg, True)
    samples = [draw(mapper, records[2], seed) for seed in range(8)]
    assert all(torch.equal(*sample["image"]) for sample in samples)
    boxes = {tuple(sample["instances"][0].gt_boxes.tensor[0].tolist()) for sample in samples}
    levels = {int(sample["image"][0].max()) for sample in samples}
    assert len(levels) > 3 and len(boxes) > 6  # brighter and darker, and turned


def test_contrast_is_that_of_each_frame(video_cfg: CfgNode) -> None:
    video_cfg.INPUT.AUGMENTATIONS = ["contrast"]
    contrast = clip_augmentations(video_cfg)[-1]
    start_clip([contrast])
    dark, bright = np.full((4, 4, 3), 20, np.uint8), np.full((4, 4, 3), 220, np.uint8)
    first, second = contrast.get_transform(dark), contrast.get_transform(bright)
    assert first.src_weight == second.src_weight and first.src_weight != 0
    assert first.src_image.mean() == pytest.approx(20) and second.src_image.mean() == pytest.approx(220)


def test_the_crop_comes_before_the_resize(records: Records, video_cfg: CfgNode) -> None:
    video_cfg.merge_from_list(["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (16, 20)])
    video_cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    clips = [draw(YTVISDatasetMapper(video_cfg, True), records[2], seed) for seed in range(10)]  # one frame, twice
    assert all(frame.shape == (3, 32, 40) for clip in clips for frame in clip["image"]), "pixels of the file, resized"
    assert not all(torch.equal(*clip["image"]) for clip in clips), "each frame is cropped anew"
    video_cfg.INPUT.CROP.TYPE = "absolute_by_clip"
    for mapper_class, record in ((YTVISDatasetMapper, records[2]), (CocoClipDatasetMapper, _as_image(records[2]))):
        clips = [draw(mapper_class(video_cfg, True), record, seed) for seed in range(6)]
        assert all(torch.equal(*clip["image"]) for clip in clips)
        assert len({clip["image"][0].numpy().tobytes() for clip in clips}) > 3


def test_frames_cropped_to_different_sizes_are_padded_to_one(records: Records, video_cfg: CfgNode) -> None:
    options = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", (12, 24)]
    video_cfg.merge_from_list([*options, "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.RANDOM_FLIP", "none"])
    mapper, padded = YTVISDatasetMapper(video_cfg, True), 0
    for seed in range(10):
        sample = draw(mapper, records[2], seed)
        first, second = sample["image"]
        assert first.shape == second.shape and min(first.shape[1:]) >= 32
        for image, instances in zip(sample["image"], sample["instances"], strict=True):
            assert instances.image_size == image.shape[1:] == instances.gt_masks.tensor.shape[1:]
            gray = (image == 128).all(0)
            padding = gray.all(0) | gray.all(1)[:, None]  # columns and rows
            padded += bool(padding.any())
            assert not (instances.gt_masks.tensor & padding).any()
    assert padded > 3


def _as_image(record: dict[str, Any]) -> dict[str, Any]:
    annotations = [{**track, "segmentation": track["segmentations"][0]} for track in record["annotations"]]
    return {"file_name": record["file_names"][0], "image_id": 5, "annotations": annotations}


def test_clips_of_one_image(records: Records, video_cfg: CfgNode) -> None:
    video_cfg.INPUT.DATASET_MAPPER_NAME = "coco_clip"
    video_cfg.INPUT.SAMPLING_FRAME_NUM = 3
    video_cfg.INPUT.AUGMENTATIONS = ["rotation"]
    mapper = build_mapper(video_cfg, True)
    assert isinstance(mapper, CocoClipDatasetMapper)
    image = _as_image(records[2])
    sample = draw(mapper, image, 4)
    assert len(sample["image"]) == len(sample["instances"]) == sample["length"] == 3
    assert not torch.equal(sample["image"][0], sample["image"][1])
    for pixels, instances in zip(sample["image"], sample["instances"], strict=True):
        assert instances.gt_ids.tolist() == [0] and instances.gt_classes.tolist() == [0]
        assert (pixels[0][instances.gt_masks.tensor[0]].float() - 160).abs().median() <= 2
    image["annotations"][0]["segmentation"] = None
    with pytest.raises(BadRecordError, match=r"00000.png: annotation 3: has no 'segmentation'"):
        mapper(image)


def test_videos_and_images_together(records: Records, video_cfg: CfgNode) -> None:
    image = _as_image(records[2])
    video_cfg.INPUT.DATASET_MAPPER_NAME = "mixed_clips"
    mapper = build_mapper(video_cfg, True)
    for record, mapper_class in ((records[1], YTVISDatasetMapper), (image, CocoClipDatasetMapper)):
        ours, theirs = draw(mapper, record, 3), draw(mapper_class(video_cfg, True), record, 3)
        assert len(ours["image"]) == video_cfg.INPUT.SAMPLING_FRAME_NUM
        assert all(torch.equal(a, b) for a, b in zip(ours["image"], theirs["image"], strict=True))
        for a, b in zip(ours["instances"], theirs["instances"], strict=True):
            assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor) and torch.equal(a.gt_ids, b.gt_ids)
    assert isinstance(build_mapper(video_cfg, False), YTVISDatasetMapper)


def test_crowds_and_unseen_objects_are_left_out(records: Records, video_cfg: CfgNode) -> None:
    mapper = YTVISDatasetMapper(video_cfg, True)
    for seed in range(10):
        sample = draw(mapper, records[0], seed)  # object 4 is seen in frame 1 only, 5 is a crowd
        expected = [[0] if frame == 1 else [-1] for frame in frame_numbers(sample)]
        ids = [instances.gt_ids.tolist() for instances in sample["instances"]]
        assert ids == (expected if 1 in frame_numbers(sample) else [[], []])


def test_annotations_listed_by_frame(records: Records, video_cfg: CfgNode) -> None:
    record = records[1]
    listed = [
        [{**t, "segmentation": t["segmentations"][f]} for t in record["annotations"] if t["segmentations"][f]]
        for f in range(6)
    ]
    mapper = YTVISDatasetMapper(video_cfg, True)
    for seed in range(5):
        ours, theirs = draw(mapper, record, seed), draw(mapper, {**record, "annotations": listed}, seed)
        for first, second in zip(ours["instances"], theirs["instances"], strict=True):
            assert torch.equal(first.gt_masks.tensor, second.gt_masks.tensor) and torch.equal(
                first.gt_ids, second.gt_ids
            )
    listed[2][0]["category_id"] = 0
    with pytest.raises(BadRecordError, match="annotation 1: has different classes in two frames"):
        mapper({**record, "annotations": listed})


def test_inference_takes_all_frames(records: Records, video_cfg: CfgNode) -> None:
    mapper = build_mapper(video_cfg, False)
    sample = mapper(records[1])
    assert len(sample["image"]) == 6 and sample["image"][0].shape == (3, 32, 40)
    assert [int(image[0, 0, 0]) for image in sample["image"]] == [0, 10, 20, 30, 40, 50]
    assert "instances" not in sample and sample["file_names"] == records[1]["file_names"]


def test_bad_records_are_named(records: Records, video_cfg: CfgNode, tmp_path: Path) -> None:
    mapper = YTVISDatasetMapper(video_cfg, True)
    with pytest.raises(BadRecordError, match=r"video 9: training sample has no 'annotations'"):
        mapper({key: value for key, value in records[2].items() if key != "annotations"})
    with pytest.raises(BadRecordError, match=r"record has no 'file_names'"):
        mapper({"file_name": "image.jpg", "annotations": []})
    with pytest.raises(BadRecordError, match=r"clip9/00000.png: .* is 40x32 .* its record says 41x32"):
        mapper({**records[2], "width": 41})
    (tmp_path / "frames" / "clip9" / "00000.png").unlink()
    with pytest.raises(BadRecordError, match=r"clip9/00000.png: the file does not exist"):
        mapper(records[2])
    records[1]["annotations"][0]["category_id"] = 2
    with pytest.raises(BadRecordError, match=r"annotation 1: category_id 2 is not a class index in \[0, 2\)"):
        mapper(records[1])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("AUGMENTATIONS", ["blur"], "INPUT.AUGMENTATIONS has 'blur'"),
        ("MIN_SIZE_TRAIN_SAMPLING", "by_clip", "INPUT.MIN_SIZE_TRAIN_SAMPLING is 'by_clip'"),
        ("SAMPLING_FRAME_NUM", 0, "INPUT.SAMPLING_FRAME_NUM must be at least 1, not 0"),
        ("DATASET_MAPPER_NAME", "coco_instance_lsj", "not one of coco_clip, mask_former_semantic, mixed"),
    ],
)
def test_wrong_settings(video_cfg: CfgNode, key: str, value: Any, message: str) -> None:
    setattr(video_cfg.INPUT, key, value)
    with pytest.raises(ValueError, match=message):
        build_mapper(video_cfg, True)


def test_image_models_do_not_take_clips(video_cfg: CfgNode) -> None:
    video_cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    video_cfg.INPUT.DATASET_MAPPER_NAME = "ytvis"
    with pytest.raises(ValueError, match="'ytvis' is not one of coco_instance_lsj"):
        build_mapper(video_cfg, True)


def test_samples_depend_on_seed_and_position_alone(
    write_videos: Callable[[], tuple[str, str]], video_cfg: CfgNode
) -> None:
    register_ytvis_json("clips", *write_videos())
    video_cfg.DATASETS.TRAIN = ("clips",)
    video_cfg.INPUT.AUGMENTATIONS = ["rotation", "brightness"]

    def stream(start: int, count: int) -> list[Any]:
        loader = iter(build_train_loader(video_cfg, start_iteration=start, seed=5))
        samples = [sample for _ in range(count) for sample in next(loader)]
        return [
            (s["file_names"], torch.stack(s["image"]), [i.gt_masks.tensor for i in s["instances"]]) for s in samples
        ]

    straight = stream(0, 4)
    np.random.seed(99)
    video_cfg.DATALOADER.NUM_WORKERS = 2
    late = stream(2, 2)
    for first, second in zip(straight[4:], late, strict=True):
        assert first[0] == second[0] and torch.equal(first[1], second[1])
        assert all(torch.equal(a, b) for a, b in zip(first[2], second[2], strict=True))
    assert len({tuple(names) for names, _, _ in straight}) > 2


def test_flip_by_clip_moves_polygons_and_codes_alike(records: Records, video_cfg: CfgNode) -> None:
    video_cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    mapper = YTVISDatasetMapper(video_cfg, True)
    mapper.augmentations = [T.HFlipTransform(40)]
    sample = draw(mapper, records[1], 11)
    for frame, instances in zip(frame_numbers(sample), sample["instances"], strict=True):
        for row, mask in zip(instances.gt_ids.tolist(), instances.gt_masks.tensor, strict=True):
            if row >= 0:
                left, right = ((4 + frame, 14 + frame), (20, 30 + frame))[row]
                columns = mask.any(0).nonzero().flatten().tolist()
                assert (columns[0], columns[-1] + 1) == (40 - right, 40 - left)
