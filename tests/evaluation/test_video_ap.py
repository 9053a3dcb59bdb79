"""Video AP against hand-made cases and against its definition, frame by frame on dense masks."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.data import BadRecordError, register_from_config, register_ytvis_json
from mask2former.data.datasets.ytvis_json import Track, Video, VideoAnnotations, read_ytvis_json
from mask2former.evaluation import build_evaluator, video_ap
from mask2former.evaluation.video_ap import clip_iou, clip_shape
from mask2former.video import YTVISEvaluator, evaluate_videos

SIZE = (6, 7)


def rle(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


def codes(masks: np.ndarray) -> list[Any]:
    """Encode (T, h, w) as T RLEs, None where empty."""
    return [rle(mask) if mask.any() else None for mask in masks]


def box(left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[1:5, left:right] = True
    return mask


NONE = np.zeros(SIZE, bool)


def truth_of(*videos: list[tuple[int, np.ndarray, bool]]) -> VideoAnnotations:
    """Build videos of (category, masks (T, h, w), crowd)."""
    made = {}
    for number, objects in enumerate(videos, start=1):
        tracks = [Track(n, category, crowd, codes(masks)) for n, (category, masks, crowd) in enumerate(objects)]
        length = len(objects[0][1]) if objects else 2
        made[number] = Video(number, *SIZE, [f"{number}/{t}.jpg" for t in range(length)], tracks)
    return VideoAnnotations("truth.json", {1: "one", 2: "two"}, made, True)


def found(video: int, category: int, score: float, masks: np.ndarray) -> dict[str, Any]:
    return {"video_id": video, "category_id": category, "score": score, "segmentations": codes(masks)}


def test_iou_is_that_of_the_whole_clip() -> None:
    """Frame 1: equal; frame 2: the guess is smaller; frame 3: only the guess; frame 4: neither."""
    truth = np.stack([box(0, 4), box(0, 4), NONE, NONE])  # 16 + 16
    guess = np.stack([box(0, 4), box(1, 4), box(0, 1), NONE])  # 16 + 12 + 4
    # Intersection 16 + 12, union 16 + 16 + 4: 28 / 36 = 0.78. The mean of the frames' IoU would be (1 + 0.75 + 0) / 3.
    scores = evaluate_videos(truth_of([(1, truth, False)]), [found(1, 1, 0.9, guess)])
    assert scores.ap(iou=0.75) == pytest.approx(100) and scores.ap(iou=0.8) == 0
    assert scores.ap() == pytest.approx(60)  # 6 of 10 thresholds
    assert scores.summary()["AR1"] == pytest.approx(60)


def test_iou_of_clips_is_exact() -> None:
    """Large masks, whose intersections come back from a quotient."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3, 700, 900)) < 0.6
    second[1] = False
    shapes = [clip_shape(codes(masks), (700, 900)) for masks in (first, second)]
    shared, either = int((first & second).sum()), int((first | second).sum())
    assert clip_iou(shapes[:1], shapes[1:])[0, 0] == shared / either
    np.testing.assert_array_equal(shapes[1].areas, second.sum(axis=(1, 2)))


def test_kinds_of_segmentations() -> None:
    polygon = [[1, 1, 4, 1, 4, 5, 1, 5]]
    runs = {"size": [6, 7], "counts": [7, 4, 2, 4, 2, 4, 19]}
    shapes = [clip_shape([code, None], SIZE) for code in (polygon, runs, rle(box(1, 4)))]
    assert [shape.areas.tolist() for shape in shapes] == [[12, 0]] * 3
    assert (clip_iou(shapes, shapes) == 1).all()


def test_no_predictions_and_absent_classes() -> None:
    truth = truth_of([(1, np.stack([box(0, 4)] * 2), False)], [])
    scores = evaluate_videos(truth, [])
    assert scores.ap() == 0 and scores.summary()["AR10"] == 0
    assert math.isnan(scores.ap(category=2)) and math.isnan(scores.summary()["APl"])
    # A wrong guess of the class without ground truth, and in the video without objects, costs nothing there.
    guesses = [found(1, 1, 0.5, np.stack([box(0, 4)] * 2)), found(2, 2, 0.9, np.stack([box(0, 4)] * 2))]
    assert evaluate_videos(truth, guesses).ap() == pytest.approx(100)
    # In a video without objects of a class that exists it stands before the right one.
    worse = [*guesses, found(2, 1, 0.9, np.stack([box(0, 4)] * 2))]
    assert evaluate_videos(truth, worse).ap() == pytest.approx(50)


def test_empty_masks_match_nothing() -> None:
    truth = truth_of([(1, np.stack([box(0, 4), NONE]), False), (1, np.stack([NONE, NONE]), False)])
    right = found(1, 1, 0.5, np.stack([box(0, 4), NONE]))
    assert evaluate_videos(truth, [right]).ap() == pytest.approx(100)  # an object that is never seen does not count
    assert evaluate_videos(truth, [found(1, 1, 0.9, np.stack([NONE, NONE])), right]).ap() == pytest.approx(50)


def test_crowds_take_any_number_and_do_not_count() -> None:
    whole, other = np.stack([box(0, 4)] * 2), np.stack([box(4, 7)] * 2)
    truth = truth_of([(1, whole, True), (1, other, False)])
    on_crowd = [found(1, 1, 0.9, whole), found(1, 1, 0.8, whole)]
    assert evaluate_videos(truth, [*on_crowd, found(1, 1, 0.5, other)]).ap() == pytest.approx(100)
    # Unlike COCO, a part of a crowd is compared by plain IoU: 16 of 32 pixels reach 0.5 and nothing above.
    part = found(1, 1, 0.9, np.stack([box(0, 2)] * 2))
    scores = evaluate_videos(truth, [part, found(1, 1, 0.5, other)])
    assert scores.ap(iou=0.5) == pytest.approx(100) and scores.ap(iou=0.55) == pytest.approx(50)


def test_recall_at_one_and_ten() -> None:
    tracks = [(1, np.stack([box(n, n + 1)] * 2), False) for n in range(4)]
    results = [found(1, 1, 0.9 - n / 10, masks) for n, (_, masks, _) in enumerate(tracks)]
    summary = evaluate_videos(truth_of(tracks), results).summary()
    assert summary["AR1"] == pytest.approx(25) and summary["AR10"] == pytest.approx(100)


def test_sizes_are_means_over_the_frames_that_show_the_object() -> None:
    masks = np.stack([box(0, 4), NONE])
    truth = truth_of([(1, masks, False)])
    track = truth.videos[1].tracks[0]
    results = [found(1, 1, 0.9, masks)]
    cases = [([128.0**2 - 1, None], "s"), ([128.0**2 + 8, None], "m"), ([256.0**2 - 1, 0], "m")]
    for areas, size in (*cases, ([256.0**2 + 2, 0], "l"), ([100.0, 70000.0], "m")):
        given = Track(track.id, 1, False, track.segmentations, areas)
        truth.videos[1].tracks[0] = given
        summary = evaluate_videos(truth, results).summary()
        assert summary[f"AP{size}"] == pytest.approx(100)
        assert all(math.isnan(summary[f"AP{other}"]) for other in set("sml") - {size})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 8}, "prediction for video 8, which truth.json does not list"),
        ({"segmentations": [None] * 3}, r"result 0, video 1 .*: 3 segmentations, but truth.json lists 2 frames"),
        ({"segmentations": [None]}, r"result 0, video 1 \(1/0.jpg\): 1 segmentations, but truth.json lists 2 frames"),
        ({"segmentations": [rle(np.ones((4, 4))), None]}, r"video 1 .* the RLE is for size \[4, 4\]"),
        ({"segmentations": [{"size": [6, 7], "counts": [3]}, None]}, "the runs of the RLE do not add up"),
        ({"segmentations": ["x", None]}, "a segmentation is a str"),
        ({"segmentations": [0, None]}, "a segmentation is a int"),
    ],
)
def test_wrong_results_are_named(change: dict[str, Any], message: str) -> None:
    masks = np.stack([box(0, 4)] * 2)
    with pytest.raises(ValueError, match=message):
        evaluate_videos(truth_of([(1, masks, False)]), [{**found(1, 1, 0.9, masks), **change}])


def test_rles_that_are_known_to_be_valid_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(video_ap, "rle_runs", lambda code, size: read.append(code))
    masks = np.stack([box(0, 4)] * 2)
    truth, results = truth_of([(1, masks, False)]), [found(1, 1, 0.9, masks)]
    assert evaluate_videos(truth, results, checked=True).ap() == pytest.approx(100) and read == []
    evaluate_videos(truth, results)
    assert len(read) == 2
    results[0]["segmentations"][1] = rle(np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"the RLE has size \[4, 4\], the video has \[6, 7\]"):
        evaluate_videos(truth, results, checked=True)


def test_thresholds_of_the_table() -> None:
    """Two frames of 12 pixels, of which the guess has 18 of 24: an IoU of 0.75; and of 17 of 24: 0.71."""
    whole = np.stack([box(0, 3)] * 2)
    for left_out, above in ((6, 100), (7, 0)):
        guess = whole.copy()
        guess.reshape(-1)[np.flatnonzero(guess)[:left_out]] = False
        summary = evaluate_videos(truth_of([(1, whole, False)]), [found(1, 1, 0.9, guess)]).summary()
        assert (summary["AP50"], summary["AP75"]) == pytest.approx((100, above))


def test_a_hundred_detections_count() -> None:
    """The right one of 100 comes last: recall is full. Behind 100 wrong ones it is not seen."""
    whole, wrong = np.stack([box(0, 4)] * 2), np.stack([box(6, 7)] * 2)
    truth = truth_of([(1, whole, False)])
    for count, recall in ((99, 100), (100, 0)):
        results = [*(found(1, 1, 0.9, wrong) for _ in range(count)), found(1, 1, 0.1, whole)]
        assert evaluate_videos(truth, results).ar_at(100) == pytest.approx(recall)


def test_detection_that_shows_nothing_is_small() -> None:
    truth = truth_of([(1, np.stack([box(0, 4), NONE]), False)])
    right, empty = found(1, 1, 0.5, np.stack([box(0, 4), NONE])), found(1, 1, 0.9, np.stack([NONE, NONE]))
    assert evaluate_videos(truth, [empty, right]).summary()["APs"] == pytest.approx(50)


def test_chosen_categories() -> None:
    whole = np.stack([box(0, 4)] * 2)
    truth = truth_of([(1, whole, False), (2, whole, False)])
    scores = evaluate_videos(truth, [found(1, 2, 0.9, whole)], category_ids=[2])
    assert scores.ap() == pytest.approx(100) and scores.precision.shape[2] == 1
    assert evaluate_videos(truth, [found(1, 2, 0.9, whole)]).ap() == pytest.approx(50)


def test_polygons_of_several_rings() -> None:
    rings = [[1, 1, 4, 1, 4, 5, 1, 5], [5, 1, 7, 1, 7, 5, 5, 5]]
    shape = clip_shape([rings], SIZE)
    assert shape.areas.tolist() == [12 + 8]
    assert clip_iou([shape], [clip_shape([rle(box(1, 4) | box(5, 7))], SIZE)]).tolist() == [[1]]


class _ByDefinition(COCOeval):
    """Compute AP by pycocotools' loops, with the IoU of clips summed frame by frame over dense masks."""

    clips: dict[int, np.ndarray]

    def computeIoU(self, image_id: int, category_id: int) -> Any:
        truths, detections = self._gts[image_id, category_id], self._dts[image_id, category_id]
        if not truths or not detections:
            return []
        order = np.argsort([-d["score"] for d in detections], kind="mergesort")[: self.params.maxDets[-1]]
        ious = np.zeros((len(order), len(truths)))
        for i, d in enumerate(order):
            for j, truth in enumerate(truths):
                first, second = detections[d]["masks"], truth["masks"]
                shared = sum(int((a & b).sum()) for a, b in zip(first, second, strict=True))
                either = sum(int((a | b).sum()) for a, b in zip(first, second, strict=True))
                ious[i, j] = shared / either
        return ious


def _random_objects(rng: np.random.Generator, pool: np.ndarray, count: int) -> list[dict[str, Any]]:
    objects = []
    for _ in range(count):
        masks = pool[rng.integers(len(pool))].copy()
        masks[rng.random(masks.shape) < 0.06] ^= True
        masks[rng.random(len(masks)) < 0.2] = False
        objects.append({"masks": masks, "category_id": int(rng.integers(1, 3))})
    return objects


def _mean_area(masks: np.ndarray) -> float:
    areas = masks.sum(axis=(1, 2))
    return float(areas[areas > 0].mean()) if areas.any() else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    made = {}
    for video in range(1, 5):
        length = int(rng.integers(1, 5))
        pool = np.zeros((3, length, *SIZE), bool)
        for clip in pool:
            left, top = rng.integers(0, 4, 2)
            clip[:, top : top + 3, left : left + int(rng.integers(2, 5))] = True
        objects = _random_objects(rng, pool, int(rng.integers(0, 5)))
        objects = [o for o in objects if o["masks"].any()]
        tracks = []
        for n, entry in enumerate(objects):
            crowd = bool(rng.random() < 0.2)
            tracks.append(Track(n, entry["category_id"], crowd, codes(entry["masks"])))
            area = _mean_area(entry["masks"])
            truths.append({**entry, "id": len(truths) + 1, "image_id": video, "iscrowd": int(crowd), "area": area})
        made[video] = Video(video, *SIZE, [f"{t}" for t in range(length)], tracks)
        for entry in _random_objects(rng, pool, int(rng.integers(0, 14))):
            score = int(rng.integers(0, 6)) / 6  # ties
            area = _mean_area(entry["masks"])
            results.append({**entry, "id": len(results) + 1, "image_id": video, "score": score, "area": area})
    images = [{"id": video} for video in made]
    categories = [{"id": 1}, {"id": 2}]
    with contextlib.redirect_stdout(io.StringIO()):
        indices = []
        for annotations in (truths, results):
            coco = COCO()
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
            indices.append(coco)
        engine = _ByDefinition(*indices, "bbox")
        engine.params.areaRng = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
        engine.evaluate()
        engine.accumulate()
    truth = VideoAnnotations("truth.json", {1: "one", 2: "two"}, made, True)
    ours = evaluate_videos(truth, [found(r["image_id"], r["category_id"], r["score"], r["masks"]) for r in results])
    np.testing.assert_array_equal(ours.precision, engine.eval["precision"])
    np.testing.assert_array_equal(ours.recall, engine.eval["recall"])
    assert 0 < ours.ap() < 100


def outputs_of(masks: dict[int, list[np.ndarray | None]], chosen: dict[int, int]) -> dict[str, Any]:
    """Return outputs of VideoMaskFormer for a clip: annotation id -> label."""
    tensors = [
        torch.from_numpy(np.stack([np.zeros((32, 40), bool) if m is None else m for m in masks[key]])) for key in chosen
    ]
    scores = [0.9 - n / 10 for n in range(len(tensors))]
    return {
        "image_size": (32, 40),
        "pred_scores": scores,
        "pred_labels": list(chosen.values()),
        "pred_masks": tensors,
    }


def test_evaluator(
    write_videos: Callable[[], tuple[str, str]],
    video_masks: dict[int, list[np.ndarray | None]],
    video_cfg: CfgNode,
    tmp_path: Path,
) -> None:
    register_ytvis_json("clips", *write_videos())
    evaluator = build_evaluator(video_cfg, "clips", str(tmp_path / "out"))
    assert isinstance(evaluator, YTVISEvaluator)
    evaluator.reset()
    evaluator.process([{"video_id": 4}], [outputs_of(video_masks, {1: 1, 2: 0})])
    evaluator.process([{"video_id": 9}], outputs_of(video_masks, {3: 0}))  # a dict alone is a batch of one
    evaluator.process([{"video_id": 2}], [outputs_of(video_masks, {})])
    metrics = evaluator.evaluate()["segm"]
    # Class bar is all found; of the two cells one is missing, so precision is 1 up to recall 0.5: 51 of 101 points.
    assert metrics["AP-bar"] == pytest.approx(100) and metrics["AP-cell"] == pytest.approx(100 * 51 / 101)
    assert metrics["AP"] == pytest.approx((100 + 100 * 51 / 101) / 2) and metrics["AR1"] == pytest.approx(75)
    assert list(metrics)[:3] == ["AP", "AP50", "AP75"] and "AR10" in metrics
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(r["video_id"], r["category_id"], r["score"]) for r in results] == [(4, 7, 0.9), (4, 3, 0.8), (9, 3, 0.9)]
    for result, key in zip(results, (1, 2, 3), strict=True):
        assert set(result) == {"video_id", "category_id", "score", "segmentations"}
        for mask, code in zip(video_masks[key], result["segmentations"], strict=True):
            assert (code is None) == (mask is None)
            if mask is not None:
                np.testing.assert_array_equal(coco_mask.decode(code), mask)


@pytest.mark.parametrize(
    ("key", "number", "told"),
    [
        ("TEST.DETECTIONS_PER_VIDEO", 10, False),
        ("TEST.DETECTIONS_PER_VIDEO", 1, True),
        ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 1, True),  # one mask each
    ],
)
@pytest.mark.parametrize("window", [0, 2])  # of whose objects more are kept in a long clip
def test_clips_with_more_objects_than_the_model_returns_are_told(
    key: str,
    number: int,
    told: bool,
    window: int,
    write_videos: Callable[[], tuple[str, str]],
    video_cfg: CfgNode,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such a model seems to learn little: of 15 objects in a clip it can find 10."""
    register_ytvis_json("clips", *write_videos())
    video_cfg.merge_from_list([key, number, "TEST.WINDOW_FRAMES", window])
    with caplog.at_level(logging.WARNING, "mask2former"):
        build_evaluator(video_cfg, "clips", str(tmp_path))
    expected = told and not window
    assert ("clips with more than 1 objects: 1 (up to 2)" in caplog.text) == expected
    assert ("TEST.DETECTIONS_PER_VIDEO and" in caplog.text) == expected


def test_videos_with_bad_records_are_left_out_where_this_is_wanted(
    write_videos: Callable[[], tuple[str, str]],
    video_content: dict[str, Any],
    video_masks: dict[int, list[np.ndarray | None]],
    video_cfg: CfgNode,
    tmp_path: Path,
) -> None:
    video_content["annotations"][0]["segmentations"].pop()  # of video 4
    video_cfg.DATASETS.YTVIS_JSON = [["clips", *write_videos()]]
    register_from_config(video_cfg)
    with pytest.raises(BadRecordError, match="annotation 1: 'segmentations' has 5 entries"):
        YTVISEvaluator("clips")
    video_cfg.DATALOADER.SKIP_BAD_RECORDS = True
    register_from_config(video_cfg)
    assert [record["video_id"] for record in DatasetCatalog.get("clips")] == [2, 9]
    evaluator = build_evaluator(video_cfg, "clips", str(tmp_path / "out"))
    for video, chosen in ((4, {1: 1}), (9, {3: 0}), (2, {4: 1})):
        evaluator.process([{"video_id": video}], [outputs_of(video_masks, chosen)])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
    evaluator.process([{"video_id": 5}], [outputs_of(video_masks, {1: 1})])
    with pytest.raises(ValueError, match="prediction for video 5, which"):
        evaluator.evaluate()


def test_files_of_a_server_get_results_and_no_ap(
    write_videos: Callable[[], tuple[str, str]],
    video_content: dict[str, Any],
    video_masks: dict[int, list[np.ndarray | None]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    video_content["annotations"] = None
    register_ytvis_json("clips", *write_videos())
    evaluator = YTVISEvaluator("clips", None, True, str(tmp_path / "out"))
    evaluator.process([{"video_id": 9}], [outputs_of(video_masks, {3: 0})])
    assert evaluator.evaluate() == {}
    assert "videos.json has no annotations, so no AP is computed: zip" in caplog.text
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 1
    with pytest.raises(ValueError, match="has no annotations; submit results.json"):
        evaluate_videos(read_ytvis_json(str(tmp_path / "videos.json")), [])


def test_wrong_outputs(
    write_videos: Callable[[], tuple[str, str]],
    video_masks: dict[int, list[np.ndarray | None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    register_ytvis_json("clips", *write_videos())
    evaluator = YTVISEvaluator("clips")
    with pytest.raises(ValueError, match="video 9: predicted class 2 is not one of the 2 classes of dataset 'clips'"):
        evaluator.process([{"video_id": 9}], [outputs_of(video_masks, {3: 2})])
    with pytest.raises(ValueError, match="META_ARCHITECTURE 'VideoMaskFormer'"):
        evaluator.process([{"video_id": 9}], [{"instances": []}])
    output = outputs_of(video_masks, {3: 0})
    output["pred_scores"] = [float("nan")]
    evaluator.process([{"video_id": 9}], [output])
    assert evaluator.evaluate()["segm"]["AP"] == 0 and "with score nan is left out" in caplog.text


def test_truth_as_results_is_perfect(write_videos: Callable[[], tuple[str, str]]) -> None:
    """Polygons, compressed and uncompressed RLE, objects that come and go, and a crowd."""
    truth = read_ytvis_json(write_videos()[0])
    results = [
        {"video_id": v.id, "category_id": t.category_id, "score": 0.5, "segmentations": t.segmentations}
        for v in truth.videos.values()
        for t in v.tracks
    ]
    assert len(results) == 5 and evaluate_videos(truth, results).ap() == pytest.approx(100)
    blank = [{**r, "segmentations": [None] * len(r["segmentations"])} for r in results]
    assert evaluate_videos(truth, blank).ap() == 0
