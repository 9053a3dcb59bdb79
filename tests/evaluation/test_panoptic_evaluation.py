"""Panoptic quality against its definition, bit for bit, and against panopticapi where that is installed."""

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
import pytest
import torch
from detectron2.evaluation import COCOPanopticEvaluator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.errors import BadRecordError
from mask2former.evaluation import PanopticEvaluator
from mask2former.evaluation.ground_truth import PanopticTruth
from mask2former.evaluation.panoptic_evaluation import merge_parts
from mask2former.evaluation.panoptic_quality import (
    CategoryCounts,
    ImageMatches,
    all_missed,
    match_segments,
    mean_quality,
    sum_counts,
)
from mask2former.structures.panoptic_ids import id_to_rgb

from ..panoptic_sample import PanopticSample
from .panoptic_oracle import Image as OracleImage
from .panoptic_oracle import panoptic_quality


def expected_of(truth: dict[str, Any]) -> dict[str, dict[Any, Any]]:
    """Return the quality of `random_panoptic` data, by definition."""
    images: list[OracleImage] = []
    for annotation, (ids, segments) in zip(truth["content"]["annotations"], truth["predictions"], strict=True):
        rgb = np.array(Image.open(Path(truth["root"], annotation["file_name"])), dtype=np.int64)
        images.append((rgb @ [1, 256, 256**2], annotation["segments_info"], ids, segments))
    return panoptic_quality(images, {c["id"]: bool(c["isthing"]) for c in truth["content"]["categories"]})


def official(images: list[OracleImage], is_thing: dict[int, bool], directory: Path) -> dict[str, dict[Any, Any]]:
    """Return what panopticapi finds in files with `images`, as `panoptic_quality` returns it."""
    evaluation = pytest.importorskip("panopticapi.evaluation")
    pairs = []
    for number, (truth, truth_segments, predicted, segments) in enumerate(images):
        pair = []
        for kind, ids, infos in (("truth", truth, truth_segments), ("predicted", predicted, segments)):
            (directory / kind).mkdir(exist_ok=True)
            Image.fromarray(id_to_rgb(ids)).save(directory / kind / f"{number}.png")
            annotation = {"image_id": number, "file_name": f"{number}.png"}
            pair.append({**annotation, "segments_info": copy.deepcopy(infos)})
        pairs.append(tuple(pair))
    categories = {i: {"id": i, "isthing": int(thing)} for i, thing in is_thing.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        stat = evaluation.pq_compute_single_core(
            0, pairs, str(directory / "truth"), str(directory / "predicted"), categories
        )
    results: dict[str, dict[Any, Any]] = {}
    for name, isthing in (("All", None), ("Things", True), ("Stuff", False)):
        try:
            results[name], per_class = stat.pq_average(categories, isthing)
        except ZeroDivisionError:  # no category of the group appears
            results[name], per_class = {"pq": math.nan, "sq": math.nan, "rq": math.nan, "n": 0}, {}
        if name == "All":
            present = {i: c for i, c in stat.pq_per_cat.items() if c.tp + c.fp + c.fn}
            results["per_class"] = {i: scores for i, scores in per_class.items() if i in present}
    return results


def noise(seed: int, size: tuple[int, int], classes: int, crowd: float, agree: bool) -> list[OracleImage]:
    """Return two images of a handful of random pixels: IoU of exactly 0.5, several crowds of a class, only void."""
    rng = np.random.default_rng(seed)
    images: list[OracleImage] = []
    for _ in range(2):
        ids = rng.integers(0, 4, size)
        predicted = np.where(rng.random(size) < (0.7 if agree else 0), ids, rng.integers(0, 4, size))
        kinds = rng.integers(0, classes, 4).tolist()
        infos = [
            {"id": i, "category_id": kinds[i], "area": int((ids == i).sum()), "iscrowd": int(rng.random() < crowd)}
            for i in np.unique(ids).tolist()
            if i
        ]
        segments = [{"id": i, "category_id": kinds[i]} for i in np.unique(predicted).tolist() if i]
        images.append((ids, infos, predicted, segments))
    return images


def assert_same(mine: dict[Any, Any], theirs: dict[Any, Any]) -> None:
    assert mine["per_class"] == theirs["per_class"]
    for group in ("All", "Things", "Stuff"):
        assert mine[group] == pytest.approx(theirs[group], rel=0, abs=0, nan_ok=True), group


@pytest.mark.parametrize("seed", range(10))
def test_the_oracle_equals_panopticapi(random_panoptic: Callable[..., Any], tmp_path: Path, seed: int) -> None:
    truth = random_panoptic(seed, images=5, segments=12)
    source = PanopticTruth(truth["json"], truth["root"])
    images = [
        (source.id_map(a), a["segments_info"], *prediction)
        for a, prediction in zip(source.annotations, truth["predictions"], strict=True)
    ]
    is_thing = {c["id"]: bool(c["isthing"]) for c in truth["content"]["categories"]}
    assert_same(expected_of(truth), official(images, is_thing, tmp_path))
    for number in range(12):
        options = {"classes": 1 + number % 2, "crowd": (0.0, 0.6, 1.0)[number % 3], "agree": number % 4 < 2}
        images = noise(100 * seed + number, (1 + number % 5, 4), **options)
        is_thing = {c: bool(c) for c in range(options["classes"])}
        assert_same(panoptic_quality(images, is_thing), official(images, is_thing, tmp_path))


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), images=st.integers(1, 5), segments=st.integers(0, 12))
def test_equals_the_definition(random_panoptic: Callable[..., Any], seed: int, images: int, segments: int) -> None:
    truth = random_panoptic(seed, images, segments=segments)
    source = PanopticTruth(truth["json"], truth["root"])
    matches = [
        match_segments(source.id_map(a), a["segments_info"], ids, predicted)
        for a, (ids, predicted) in zip(source.annotations, truth["predictions"], strict=True)
    ]
    counts = sum_counts(matches)
    expected = expected_of(truth)
    for group, isthing in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        quality = mean_quality(counts, [i for i, c in source.categories.items() if c["isthing"] in isthing])
        assert quality.categories == expected[group]["n"]
        for metric in ("pq", "sq", "rq"):
            mine, theirs = getattr(quality, metric), expected[group][metric]
            assert mine == theirs or (math.isnan(mine) and math.isnan(theirs))
    present = {category: entry for category, entry in counts.items() if entry.present}
    assert {c: {"pq": e.pq, "sq": e.sq, "rq": e.rq} for c, e in present.items()} == expected["per_class"]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    classes=st.integers(1, 2),
    crowd=st.sampled_from([0.0, 0.6, 1.0]),
    agree=st.booleans(),
)
def test_noise_equals_the_definition(seed: int, size: tuple[int, int], classes: int, crowd: float, agree: bool) -> None:
    images = noise(seed, size, classes, crowd, agree)
    mine = mean_quality(sum_counts(match_segments(*image) for image in images), range(classes))
    expected = panoptic_quality(images, {c: bool(c) for c in range(classes)})["All"]
    assert mine.categories == expected["n"]
    for metric in ("pq", "sq", "rq"):
        assert getattr(mine, metric) == pytest.approx(expected[metric], rel=0, abs=0, nan_ok=True)


@pytest.mark.slow
def test_the_random_cases_reach_every_rule(random_panoptic: Callable[..., Any]) -> None:
    """The comparison above says little unless matches, misses, extras, void and crowd occur."""
    seen = {"matched": 0, "missed": 0, "spurious": 0, "excused": 0}
    for seed in range(20):
        truth = random_panoptic(seed)
        source = PanopticTruth(truth["json"], truth["root"])
        for a, (ids, predicted) in zip(source.annotations, truth["predictions"], strict=True):
            m = match_segments(source.id_map(a), a["segments_info"], ids, predicted)
            seen["matched"] += len(m.matched)
            seen["missed"] += len(m.missed)
            seen["spurious"] += len(m.spurious)
            seen["excused"] += len(predicted) - len(m.matched) - len(m.spurious)
    assert min(seen.values()) >= 20, seen


def _map(text: str) -> np.ndarray:
    return np.array([[int(c) for c in row] for row in text.split()])


def test_hand_computed_matches() -> None:
    truth = _map("1111 1111 0022 0022")
    predicted = _map("1111 1133 5522 5522")
    truth_segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}]
    segments = [{"id": i, "category_id": c} for i, c in ((1, 7), (2, 9), (3, 7), (5, 7))]
    m = match_segments(truth, truth_segments, predicted, segments)
    assert m.matched == ((7, 6 / 8),)
    assert m.missed == (8,)
    assert sorted(m.spurious) == [7, 9]  # 3 and 2; 5 lies on void


def test_crowd_excuses_only_its_category() -> None:
    truth = _map("111 111 222")
    truth_segments = [
        {"id": 1, "category_id": 7, "iscrowd": 1, "area": 6},
        {"id": 2, "category_id": 8, "area": 3},
    ]
    segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 9}, {"id": 3, "category_id": 8}]
    m = match_segments(truth, truth_segments, _map("111 222 333"), segments)
    assert (m.matched, m.missed, m.spurious) == (((8, 1.0),), (), (9,))


@pytest.mark.parametrize(
    ("predicted", "segments", "message"),
    [
        ("12 12", [{"id": 1, "category_id": 7}], r"ids \[2\] are in the predicted map but not in"),
        (
            "11 11",
            [{"id": 1, "category_id": 7}, {"id": 4, "category_id": 7}],
            r"ids \[4\] .* not in the predicted",
        ),
        ("00 11", [{"id": 0, "category_id": 7}, {"id": 1, "category_id": 7}], "0 is void"),
        ("11 11", [{"id": 1, "category_id": 7}, {"id": 1, "category_id": 8}], "must be unique"),
        ("11 11", [{"id": 1, "category_id": 7}, {"id": 256**3, "category_id": 8}], "must be unique and in"),
        ("11 11", [{"id": 1, "category_id": 7}, {"id": -1, "category_id": 8}], "must be unique and in"),
        ("111 111", [{"id": 1, "category_id": 7}], r"\(2, 3\), ground truth is \(2, 2\)"),
    ],
)
def test_inconsistent_predictions(predicted: str, segments: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_segments(_map("11 11"), [{"id": 1, "category_id": 7}], _map(predicted), segments)


def test_negative_ids_of_a_prediction() -> None:
    with pytest.raises(ValueError, match="has negative ids"):
        match_segments(_map("11 11"), [{"id": 1, "category_id": 7}], _map("11 11") - 2, [])


def test_largest_id() -> None:
    largest = 256**3 - 1
    segments = [{"id": largest, "category_id": 7}]
    m = match_segments(_map("11 11"), [{"id": 1, "category_id": 7}], np.full((2, 2), largest), segments)
    assert m.matched == ((7, 1.0),)


def test_half_is_no_match_and_excuses_nothing() -> None:
    """An IoU of exactly 0.5 does not match; half of a prediction on void does not excuse it."""
    segments = [{"id": 1, "category_id": 7}]
    m = match_segments(_map("1111 0022"), [segments[0], {"id": 2, "category_id": 8}], _map("1100 0011"), segments)
    assert (m.matched, m.missed, m.spurious) == ((), (7, 8), (7,))
    m = match_segments(_map("1111 2222"), [segments[0], {"id": 2, "category_id": 8}], _map("1100 0000"), segments)
    assert (m.matched, m.missed, m.spurious) == ((), (7, 8), (7,))
    m = match_segments(_map("2200 2200"), [{"id": 2, "category_id": 8}], _map("1111 0000"), segments)
    assert (m.matched, m.missed, m.spurious) == ((), (8,), (7,))


def test_void_counts_in_no_union() -> None:
    """Of 6 predicted pixels 2 lie on void and 4 on the ground truth of 4: a match of 1."""
    segments = [{"id": 1, "category_id": 7}]
    m = match_segments(_map("1111 0022"), [segments[0], {"id": 2, "category_id": 8}], _map("1111 1100"), segments)
    assert m.matched == ((7, 1.0),) and m.missed == (8,)


def test_pixels_that_no_segment_declares_are_not_void() -> None:
    """An id of the ground truth that the file does not list takes part in the union, and excuses nothing."""
    segments = [{"id": 1, "category_id": 7}]
    m = match_segments(_map("1111 9999"), segments, _map("1111 1100"), segments)
    assert m.matched == ((7, 4 / 6),)
    m = match_segments(_map("1999 9999"), segments, _map("0111 1111"), segments)
    assert m.spurious == (7,) and m.missed == (7,)


@pytest.mark.parametrize("area", [10, 4, 0])
def test_pixels_count_and_other_areas_are_reported(area: int) -> None:
    """With the area of the file, as in the official script, a segment could match itself by more than 100 %."""
    segments = [{"id": 1, "category_id": 7}]
    m = match_segments(_map("1111 1111"), [{**segments[0], "area": area}], _map("1111 1111"), segments)
    assert m.matched == ((7, 1.0),) and m.resized == 1


def test_last_crowd_of_a_category_and_repeated_ids_count() -> None:
    truth = [{"id": 1, "category_id": 7, "iscrowd": 1}, {"id": 2, "category_id": 7, "iscrowd": 1}]
    predicted = [{"id": 5, "category_id": 7}]
    assert match_segments(_map("1112"), truth, _map("5550"), predicted).spurious == (7,)
    assert match_segments(_map("1112"), truth[::-1], _map("5550"), predicted).spurious == ()
    twice = [{"id": 1, "category_id": 7}, {"id": 1, "category_id": 8}]
    assert match_segments(_map("1111"), twice, _map("1111"), [{"id": 1, "category_id": 8}]).matched == ((8, 1.0),)


def test_void_and_crowd_excuse_together() -> None:
    truth = [{"id": 1, "category_id": 7, "iscrowd": 1}, {"id": 2, "category_id": 8}]
    predicted = [{"id": 5, "category_id": 7}]
    m = match_segments(_map("110222 222222"), truth, _map("555550 000000"), predicted)
    assert (m.matched, m.missed, m.spurious) == ((), (8,), ())


def test_image_without_prediction() -> None:
    crowd = {"id": 1, "category_id": 7, "iscrowd": 1}
    assert all_missed([crowd, {"id": 2, "category_id": 8}]) == ImageMatches(missed=(8,))


def test_quality_by_hand() -> None:
    """Of category 1: IoU 0.8 and 0.6, one more prediction, two missed objects; category 2 has only a false positive."""
    images = [ImageMatches(matched=((1, 0.8),), missed=(1,)), ImageMatches(((1, 0.6),), (1,), (1, 2))]
    counts = sum_counts(images)
    entry = counts[1]
    assert (entry.tp, entry.fp, entry.fn) == (2, 1, 2)
    assert (entry.sq, entry.rq, entry.pq) == pytest.approx((0.7, 2 / 3.5, 1.4 / 3.5))
    assert counts[2].present and (counts[2].sq, counts[2].rq, counts[2].pq) == (0, 0, 0)
    quality = mean_quality({**counts, 3: CategoryCounts()}, [1, 2, 3, 4])
    assert quality.categories == 2
    assert (quality.pq, quality.sq, quality.rq) == pytest.approx((0.7 / 3.5, 0.35, 1 / 3.5))


@pytest.mark.parametrize("alpha", [False, True])
def test_annotation_image_with_and_without_alpha(alpha: bool, tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [256, 65536, 256**3 - 1]])
    rgb = id_to_rgb(ids)
    Image.fromarray(np.dstack([rgb, np.full(ids.shape, 7, np.uint8)]) if alpha else rgb).save(tmp_path / "a.png")
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": []}
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [annotation], "categories": []}))
    read = PanopticTruth(str(tmp_path / "a.json"), str(tmp_path)).id_map(annotation)
    assert read.dtype == np.int32 and read.tolist() == ids.tolist()


@pytest.fixture
def dataset(random_panoptic: Callable[..., Any], register: Callable[..., str]) -> tuple[str, dict[str, Any]]:
    truth = random_panoptic(5, images=5)
    categories = truth["content"]["categories"]
    name = register(
        "test_panoptic",
        panoptic_json=truth["json"],
        panoptic_root=truth["root"],
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories) if c["isthing"]},
        stuff_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        stuff_classes=[c["name"] for c in categories],
    )
    return name, truth


def batch(truth: dict[str, Any], dtype: torch.dtype = torch.int32) -> tuple[list[dict], list[dict]]:
    """Return inputs and outputs as of a model: contiguous ids, isthing, score and area."""
    categories = truth["content"]["categories"]
    contiguous = {c["id"]: (i, bool(c["isthing"])) for i, c in enumerate(categories)}
    inputs, outputs = [], []
    for annotation, (ids, segments) in zip(truth["content"]["annotations"], truth["predictions"], strict=True):
        number = annotation["image_id"]
        inputs.append({"image_id": number, "file_name": f"x/{number:04d}.jpg"})
        infos = [
            {
                "id": s["id"],
                "category_id": contiguous[s["category_id"]][0],
                "isthing": contiguous[s["category_id"]][1],
                "score": 0.5,
                "area": int((ids == s["id"]).sum()),
            }
            for s in segments
        ]
        outputs.append({"panoptic_seg": (torch.as_tensor(ids).to(dtype), infos)})
    return inputs, outputs


def evaluate(name: str, inputs: list[dict], outputs: list[dict]) -> dict[str, float]:
    evaluator = PanopticEvaluator(name)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert results is not None
    return results["panoptic_seg"]


def test_evaluator_equals_the_definition(dataset: tuple[str, dict[str, Any]]) -> None:
    name, truth = dataset
    results, expected = evaluate(name, *batch(truth)), expected_of(truth)
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("pq", "sq", "rq"):
            assert results[metric.upper() + suffix] == 100 * expected[group][metric]


def test_evaluator_equals_detectron2(dataset: tuple[str, dict[str, Any]]) -> None:
    pytest.importorskip("panopticapi")
    name, truth = dataset
    inputs, outputs = batch(truth)
    results = evaluate(name, inputs, outputs)
    host = COCOPanopticEvaluator(name)
    host.reset()
    host.process(inputs, copy.deepcopy(outputs))
    theirs = host.evaluate()["panoptic_seg"]
    assert list(results) == list(theirs)
    assert results == pytest.approx(theirs, rel=1e-13)  # the host adds up per core: the last digit may differ


def test_labels_without_segments_info(dataset: tuple[str, dict[str, Any]]) -> None:
    name, truth = dataset
    inputs, outputs = batch(truth)
    labels = []
    for output in outputs:
        ids, segments = output["panoptic_seg"]
        label = torch.full_like(ids, -1)
        for s in segments:
            label[ids == s["id"]] = s["category_id"] * 1000 + s["id"]
        labels.append({"panoptic_seg": (label, None)})
    both = []
    for predictions in (outputs, labels):
        evaluator = PanopticEvaluator(name)
        evaluator.process(inputs, predictions)
        both.append(evaluator.evaluate())
    assert both[0] == both[1]


def test_dataset_category_ids_without_isthing(dataset: tuple[str, dict[str, Any]]) -> None:
    name, truth = dataset
    evaluator = PanopticEvaluator(name)
    for annotation, (ids, segments) in zip(truth["content"]["annotations"], truth["predictions"], strict=True):
        output = {"panoptic_seg": (torch.as_tensor(ids), segments)}
        evaluator.process([{"image_id": annotation["image_id"]}], [output])
    results = evaluator.evaluate()
    assert results is not None
    assert results["panoptic_seg"]["PQ"] == 100 * expected_of(truth)["All"]["pq"]


def test_merging_equals_one_process(dataset: tuple[str, dict[str, Any]]) -> None:
    name, truth = dataset
    inputs, outputs = batch(truth)
    evaluators = [PanopticEvaluator(name) for _ in range(3)]
    evaluators[0].process(inputs[3:], outputs[3:])
    evaluators[2].process(inputs[:3], outputs[:3])
    whole = PanopticEvaluator(name)
    whole.process(inputs, outputs)
    expected = whole.evaluate()
    whole._part = merge_parts([e._part for e in evaluators])
    assert whole.evaluate() == expected


def test_empty_predictions_are_zero(dataset: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    name, truth = dataset
    inputs, outputs = batch(truth)
    empty = [{"panoptic_seg": (torch.zeros_like(o["panoptic_seg"][0]), [])} for o in outputs]
    evaluator = PanopticEvaluator(name, str(tmp_path / "out"))
    evaluator.process(inputs, empty)
    results = evaluator.evaluate()
    assert results is not None
    assert set(results["panoptic_seg"].values()) == {0.0}
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert all(a["segments_info"] == [] for a in written["annotations"])


def test_no_image_seen(dataset: tuple[str, dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    evaluator = PanopticEvaluator(dataset[0])
    evaluator.reset()
    with caplog.at_level("WARNING"):
        results = evaluator.evaluate()
    assert results is not None
    assert results["panoptic_seg"]["PQ"] == 0
    assert "5 of 5 annotated images have no prediction" in caplog.text


def test_group_without_categories_is_nan(
    dataset: tuple[str, dict[str, Any]], register: Callable[..., str], tmp_path: Path
) -> None:
    truth = dataset[1]
    content = copy.deepcopy(truth["content"])
    for category in content["categories"]:
        category["isthing"] = 1
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    things = {c["id"]: i for i, c in enumerate(content["categories"])}
    name = register(
        "test_things",
        panoptic_json=str(path),
        panoptic_root=truth["root"],
        thing_dataset_id_to_contiguous_id=things,
    )
    evaluator = PanopticEvaluator(name)
    inputs, outputs = batch({**truth, "content": content})
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert results is not None
    assert math.isnan(results["panoptic_seg"]["PQ_st"])
    assert results["panoptic_seg"]["PQ"] == results["panoptic_seg"]["PQ_th"] > 0


def save_predictions(dataset: tuple[str, dict[str, Any]], out: Path) -> float:
    """Evaluate with saved predictions in ``out``; return PQ."""
    evaluator = PanopticEvaluator(dataset[0], str(out), save_predictions=True)
    evaluator.process(*batch(dataset[1]))
    results = evaluator.evaluate()
    assert results is not None
    return results["panoptic_seg"]["PQ"]


def test_saved_predictions_hold_what_was_predicted(dataset: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    truth, out = dataset[1], tmp_path / "out"
    pq = save_predictions(dataset, out)
    pngs = [f"{i:04d}.png" for i in range(5)]
    assert sorted(p.name for p in out.rglob("*")) == [*pngs, "predictions", "predictions.json"]
    written = json.loads((out / "predictions.json").read_text())["annotations"]
    by_image = {annotation["image_id"]: annotation for annotation in written}
    read = []
    for annotation in truth["content"]["annotations"]:
        prediction = by_image[annotation["image_id"]]
        rgb = np.array(Image.open(out / "predictions" / prediction["file_name"]), dtype=np.int64)
        read.append((rgb @ [1, 256, 256**2], prediction["segments_info"]))
    assert pq == 100 * expected_of({**truth, "predictions": read})["All"]["pq"] > 0
    assert all((ids == original).all() for (ids, _), (original, _) in zip(read, truth["predictions"], strict=True))


def test_saved_predictions_are_read_by_panopticapi(dataset: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    pq = save_predictions(dataset, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        reread = evaluation.pq_compute(dataset[1]["json"], str(tmp_path / "predictions.json"), dataset[1]["root"])
    assert pq == pytest.approx(100 * reread["All"]["pq"], rel=1e-13)


def test_only_json_without_the_option(dataset: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    inputs, outputs = batch(dataset[1])
    evaluator = PanopticEvaluator(dataset[0], str(tmp_path / "out"))
    evaluator.process(inputs, outputs)
    evaluator.evaluate()
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["predictions.json"]


def test_per_class(dataset: tuple[str, dict[str, Any]]) -> None:
    name, truth = dataset
    inputs, outputs = batch(truth)
    evaluator = PanopticEvaluator(name, per_class=True)
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert results is not None
    expected = expected_of(truth)["per_class"]
    for category in truth["content"]["categories"]:
        value = results["panoptic_seg"][f"PQ-{category['name']}"]
        scores = expected.get(category["id"])
        assert value == 100 * scores["pq"] if scores else math.isnan(value)


def test_user_errors(dataset: tuple[str, dict[str, Any]], register: Callable[..., str], tmp_path: Path) -> None:
    name, truth = dataset
    inputs, outputs = batch(truth)
    evaluator = PanopticEvaluator(name)
    with pytest.raises(ValueError, match="PANOPTIC_ON"):
        evaluator.process(inputs[:1], [{"instances": None}])
    with pytest.raises(ValueError, match="no annotation for image 99"):
        evaluator.process([{"image_id": 99}], outputs[:1])
    ids, segments = outputs[0]["panoptic_seg"]
    with pytest.raises(ValueError, match=r"image 0: .* ground truth"):
        evaluator.process(inputs[:1], [{"panoptic_seg": (ids[1:], segments)}])
    wrong = [{"id": 1, "category_id": 77, "isthing": True}]
    with pytest.raises(ValueError, match="thing class 77"):
        evaluator.process(inputs[:1], [{"panoptic_seg": (torch.ones_like(ids), wrong)}])
    with pytest.raises(ValueError, match="panoptic_json"):
        PanopticEvaluator(register("test_no_panoptic"))
    wrong_kind = {"categories": [], "annotations": [{"id": 1, "image_id": 1}]}
    (tmp_path / "instances.json").write_text(json.dumps(wrong_kind))
    with pytest.raises(ValueError, match="instance annotation file"):
        PanopticTruth(str(tmp_path / "instances.json"), truth["root"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PanopticTruth(truth["json"], str(tmp_path / "nowhere"))
    Image.new("L", (31, 24)).save(Path(truth["root"]) / "0000.png")
    with pytest.raises(ValueError, match="mode L"):
        evaluator.process(inputs[:1], outputs[:1])
    (Path(truth["root"]) / "0000.png").unlink()
    with pytest.raises(BadRecordError, match=r"0000\.png: the file does not exist"):
        evaluator.process(inputs[:1], outputs[:1])


def test_text_image_ids(dataset: tuple[str, dict[str, Any]]) -> None:
    inputs, outputs = batch(dataset[1])
    as_text = [{**i, "image_id": str(i["image_id"])} for i in inputs]
    both = []
    for given_inputs in (inputs, as_text):
        evaluator = PanopticEvaluator(dataset[0])
        evaluator.process(given_inputs, outputs)
        both.append(evaluator.evaluate())
    assert both[0] == both[1]


def test_annotation_against_itself(panoptic_sample: PanopticSample) -> None:
    truth = PanopticTruth(str(panoptic_sample.json_file), str(panoptic_sample.panoptic_dir))
    for annotation in panoptic_sample.content["annotations"]:
        ids = truth.id_map(annotation)
        masks = panoptic_sample.masks[annotation["file_name"]]
        assert all(np.array_equal(ids == segment, mask) for segment, mask in masks.items())
        segments = annotation["segments_info"]
        m = match_segments(ids, segments, ids, segments)
        ordinary = [s["category_id"] for s in sorted(segments, key=lambda s: s["id"]) if not s["iscrowd"]]
        assert len(ordinary) == 5 and m.matched == tuple((category, 1.0) for category in ordinary)
        assert m.spurious == m.missed == ()
