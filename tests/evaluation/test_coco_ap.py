"""AP against pycocotools, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation import CocoScores, coco_matching, evaluate_coco, load_coco_truth
from mask2former.evaluation.ground_truth import index_coco


def official(truth: dict[str, Any], results: list[dict[str, Any]], task: str, max_dets: int) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        engine = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), task)
        engine.params.maxDets = [1, 10, max_dets]
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    return engine


def ours(truth: dict[str, Any], results: list[dict[str, Any]], task: str = "segm", max_dets: int = 100) -> CocoScores:
    return evaluate_coco(index_coco(copy.deepcopy(truth)), results, task, max_dets)


def test_ids_of_images_may_be_numbers_and_texts() -> None:
    box = {"category_id": 1, "bbox": [1, 1, 6, 6], "area": 36, "iscrowd": 0, "segmentation": [[1, 1, 7, 1, 7, 7, 1, 7]]}
    ids = [3, "b", 1, "a"]
    truth = {
        "images": [{"id": i, "height": 9, "width": 9} for i in ids],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{**box, "id": n, "image_id": i} for n, i in enumerate(ids, start=1)],
    }
    results = [{**box, "image_id": i, "score": 0.5} for i in ids]
    assert ours(truth, results, "bbox").ap() == pytest.approx(100)


def assert_identical(scores: CocoScores, engine: COCOeval) -> None:
    np.testing.assert_array_equal(scores.precision, engine.eval["precision"])
    np.testing.assert_array_equal(scores.recall, engine.eval["recall"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 4),
    classes=st.integers(1, 4),
    max_dets=st.sampled_from([15, 100, 500]),
    ties=st.booleans(),
)
def test_masks_equal_pycocotools(
    random_coco: Callable[..., Any], seed: int, images: int, classes: int, max_dets: int, ties: bool
) -> None:
    truth, results = random_coco(seed, images, classes, ties=ties)
    if not results:
        return
    assert_identical(ours(truth, results, "segm", max_dets), official(truth, results, "segm", max_dets))


@pytest.mark.parametrize("seed", range(5))
def test_boxes_equal_pycocotools(random_coco: Callable[..., Any], seed: int) -> None:
    truth, results = random_coco(seed)
    boxes = [
        {k: v for k, v in r.items() if k != "segmentation"} | {"bbox": mask_util.toBbox(r["segmentation"]).tolist()}
        for r in results
    ]
    assert_identical(ours(truth, boxes, "bbox"), official(truth, boxes, "bbox", 100))


@pytest.mark.parametrize("seed", range(5))
def test_summary_equals_pycocotools(random_coco: Callable[..., Any], seed: int) -> None:
    truth, results = random_coco(seed, images=4, classes=3)
    scores = ours(truth, results)
    stats = official(truth, results, "segm", 100).stats
    mine = [
        scores.ap(),
        scores.ap(iou=0.5),
        scores.ap(iou=0.75),
        scores.ap(area="small"),
        scores.ap(area="medium"),
        scores.ap(area="large"),
    ]
    assert mine == [float(s * 100) if s >= 0 else pytest.approx(math.nan, nan_ok=True) for s in stats[:6]]
    assert scores.ar() == float(stats[8] * 100)
    np.testing.assert_allclose(scores.stats, stats, rtol=1e-12)
    assert scores.params.catIds == list(scores.category_ids) and scores.params.maxDets == [1, 10, 100]


def _square(x: int, y: int, size: int = 4, side: int = 128) -> dict[str, Any]:
    mask = np.zeros((side, side), np.uint8, order="F")
    mask[y : y + size, x : x + size] = 1
    encoded = mask_util.encode(mask)
    return {"size": [side, side], "counts": encoded["counts"].decode()}


def _crowded(count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image with `count` squares, all found; the score falls with the number."""
    positions = [(6 * (i % 20), 6 * (i // 20)) for i in range(count)]
    annotations = [
        {
            "id": i + 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "area": 16,
            "segmentation": _square(x, y),
        }
        for i, (x, y) in enumerate(positions)
    ]
    results = [
        {"image_id": 1, "category_id": 1, "score": 1 - i / 1000, "segmentation": a["segmentation"]}
        for i, a in enumerate(annotations)
    ]
    truth = {
        "images": [{"id": 1, "height": 128, "width": 128}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": annotations,
    }
    return truth, results


def test_more_than_100_detections_per_image() -> None:
    truth, results = _crowded(300)
    scores = ours(truth, results, max_dets=500)
    # pycocotools' precision of perfect results falls short of 1 by its guard against division by zero
    assert scores.ap() == pytest.approx(100)
    assert scores.ar() == 100
    assert scores.max_dets == (1, 10, 500)
    # with the usual limit a third is found: precision 1 at the 34 recall points up to 1/3
    limited = ours(truth, results, max_dets=100)
    assert limited.ap() == pytest.approx(100 * 34 / 101)
    assert limited.ar() == pytest.approx(100 / 3)
    assert_identical(scores, official(truth, results, "segm", 500))


@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_both_ways_of_matching_are_reached(
    random_coco: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """The comparison with pycocotools above says little unless detections with and without a choice occur."""
    calls = {"_greedy": 0, "_match_without_choice": 0}
    for name in calls:
        inner = getattr(coco_matching, name)

        def counted(*args: Any, name: str = name, inner: Any = inner) -> Any:
            calls[name] += 1
            return inner(*args)

        monkeypatch.setattr(coco_matching, name, counted)
    for seed in range(5):
        truth, results = random_coco(seed)
        for result in results:
            result["bbox"] = mask_util.toBbox(result["segmentation"]).tolist()
        ours(truth, results, task)
    assert calls["_greedy"] >= 10
    assert calls["_match_without_choice"] == 5


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), crowded=st.booleans(), max_dets=st.sampled_from([15, 100]))
def test_overlapping_truths_equal_pycocotools(seed: int, crowded: bool, max_dets: int) -> None:
    """Boxes at a few positions only, so that each detection overlaps several objects, crowds and other sizes."""
    rng = np.random.default_rng(seed)
    positions = [[10 + 2 * i, 10, 40 + 30 * (i % 2), 40] for i in range(4)]

    def box() -> list[float]:
        return [float(v) for v in positions[rng.integers(4)]]

    annotations = [
        {"id": n + 1, "image_id": int(rng.integers(2)), "category_id": 1, "bbox": box()}
        | {"iscrowd": int(crowded and rng.random() < 0.4), "area": float(rng.choice([100, 1600, 20000]))}
        for n in range(int(rng.integers(0, 8)))
    ]
    results = [
        {"image_id": int(rng.integers(2)), "category_id": 1, "bbox": box(), "score": float(rng.integers(0, 4))}
        for _ in range(int(rng.integers(1, 40)))
    ]
    images = [{"id": i, "height": 100, "width": 100} for i in range(2)]
    truth = {"images": images, "categories": [{"id": 1, "name": "one"}], "annotations": annotations}
    theirs = official(truth, results, "bbox", max_dets)
    mine = ours(truth, results, "bbox", max_dets)
    np.testing.assert_array_equal(mine.precision[..., -1], theirs.eval["precision"][..., -1])
    np.testing.assert_array_equal(mine.recall[..., -1], theirs.eval["recall"][..., -1])


def test_few_detections_allowed() -> None:
    truth, results = _crowded(20)
    scores = ours(truth, results, max_dets=5)
    assert scores.max_dets == (1, 5)
    assert scores.ar() == 25


def test_no_results_is_zero_with_truth_and_nan_without() -> None:
    truth, _ = _crowded(3)
    scores = ours(truth, [])
    assert (scores.ap(), scores.ap(iou=0.5), scores.ar(), scores.ap(area="small")) == (0, 0, 0, 0)
    assert math.isnan(scores.ap(area="large"))
    truth["annotations"] = []
    assert math.isnan(ours(truth, []).ap())
    assert math.isnan(ours(truth, _crowded(3)[1]).ap())


def test_absent_class_is_nan_and_left_out_of_the_mean() -> None:
    truth, results = _crowded(4)
    truth["categories"].append({"id": 9, "name": "absent"})
    scores = ours(truth, [*results, {**results[0], "category_id": 9}])
    assert math.isnan(scores.ap(category=9))
    assert scores.ap(category=1) == scores.ap() == pytest.approx(100)


def test_crowd_is_neither_found_nor_missed() -> None:
    truth, results = _crowded(2)
    truth["annotations"][1]["iscrowd"] = 1
    assert ours(truth, results[:1]).ap() == pytest.approx(100)
    three_on_crowd = [results[0], results[1], results[1], results[1]]
    assert ours(truth, three_on_crowd).ap() == pytest.approx(100)


def test_hand_computed_precision() -> None:
    # best score wrong, then both right: precision 1/2 up to recall 0.5, 2/3 after; its envelope is 2/3
    truth, results = _crowded(2)
    wrong = {"image_id": 1, "category_id": 1, "score": 2.0, "segmentation": _square(100, 100)}
    assert ours(truth, [wrong, *results]).ap() == pytest.approx(100 * 2 / 3)


def test_image_subset(random_coco: Callable[..., Any]) -> None:
    truth, results = random_coco(11, images=4)
    only = [1, 3]
    part = {**truth, "images": [i for i in truth["images"] if i["id"] in only]}
    expected = ours(part, [r for r in results if r["image_id"] in only])
    subset = evaluate_coco(index_coco(copy.deepcopy(truth)), results, "segm", 100, only)
    np.testing.assert_array_equal(subset.precision, expected.precision)


def test_results_stay_untouched(random_coco: Callable[..., Any]) -> None:
    truth, results = random_coco(3)
    before = copy.deepcopy(results)
    ours(truth, results)
    assert results == before


def test_unknown_image_and_wrong_size_are_errors() -> None:
    truth, results = _crowded(2)
    with pytest.raises(ValueError, match="image 5"):
        ours(truth, [{**results[0], "image_id": 5}])
    with pytest.raises(ValueError, match=r"\[64, 64\].*\[128, 128\]"):
        ours(truth, [{**results[0], "segmentation": _square(0, 0, side=64)}])
    with pytest.raises(ValueError, match="task"):
        ours(truth, results, "keypoints")
    with pytest.raises(ValueError, match="max_dets"):
        ours(truth, results, max_dets=0)


def _load(tmp_path: Path, content: Any) -> COCO:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return load_coco_truth(path)


def test_annotation_id_zero_counts(tmp_path: Path) -> None:
    truth, results = _crowded(2)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number
    assert evaluate_coco(_load(tmp_path, truth), results).ap() == pytest.approx(100)


def test_repeated_annotation_ids_count(tmp_path: Path) -> None:
    truth, results = _crowded(2)
    truth["annotations"][1]["id"] = truth["annotations"][0]["id"]
    assert evaluate_coco(_load(tmp_path, truth), results).ap() == pytest.approx(100)
    assert evaluate_coco(_load(tmp_path, truth), results[:1]).ar() == 50


def test_missing_fields_are_filled(tmp_path: Path) -> None:
    truth, results = _crowded(2)
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    truth["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]
    scores = evaluate_coco(_load(tmp_path, truth), results)
    assert scores.ap(area="small") == pytest.approx(100)
    assert math.isnan(scores.ap(area="medium"))


@pytest.mark.parametrize("degenerate", [[], [[1, 2, 3, 4]], [[1, 2]]])
def test_empty_segmentation_is_left_out(degenerate: list, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth, results = _crowded(2)
    truth["annotations"][1]["segmentation"] = degenerate
    with caplog.at_level("WARNING"):
        coco = _load(tmp_path, truth)
    assert "1 annotations with an empty segmentation" in caplog.text
    assert evaluate_coco(coco, results[:1]).ar() == 100


@pytest.mark.parametrize(
    "break_it",
    [
        lambda t: t["annotations"][1].update(segmentation={"size": [128, 128], "counts": 5}),
        lambda t: t["annotations"][1].update(segmentation=_square(0, 0, side=64)),
        lambda t: t["annotations"][1].update(segmentation="polygon"),
        # Runs that end before the image does: pycocotools' IoU never returns from these.
        lambda t: t["annotations"][1].update(segmentation={"size": [128, 128], "counts": [3, 4]}),
    ],
)
def test_broken_masks_name_file_and_record(tmp_path: Path, break_it: Callable[[dict], None]) -> None:
    truth, _ = _crowded(2)
    break_it(truth)
    with pytest.raises(ValueError, match=r"truth.json: annotation 2: "):
        _load(tmp_path, truth)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load_coco_truth(tmp_path / "nowhere.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="cut.json"):
        load_coco_truth(tmp_path / "cut.json")
    with pytest.raises(ValueError, match="no 'categories'"):
        _load(tmp_path, {"images": [], "annotations": []})
    truth, _ = _crowded(2)
    del truth["images"][0]["height"]
    with pytest.raises(ValueError, match="image 1: needs a positive integer 'height'"):
        _load(tmp_path, truth)
    truth, _ = _crowded(2)
    del truth["annotations"][1]["category_id"]
    with pytest.raises(ValueError, match="annotation 2: category None is not declared"):
        _load(tmp_path, truth)
