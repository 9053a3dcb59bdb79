"""PQ of semantic predictions against the definition of panoptic quality."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.evaluation import SemanticEvaluator, evaluate_semantic_pq
from mask2former.evaluation.panoptic_quality import mean_quality, sum_counts
from mask2former.evaluation.semantic_pq import class_matches

from .panoptic_oracle import panoptic_quality

IGNORE = 255


def expected_of(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> dict[str, float]:
    """Return the quality of class maps as panoptic ones in which each class is a segment."""
    images = []
    for pair in pairs:
        image: list[Any] = []
        for labels in pair:
            ids = np.where((labels == IGNORE) | (labels < 0), 0, labels + 1)
            image += [ids, [{"id": i, "category_id": i - 1} for i in np.unique(ids).tolist() if i]]
        images.append(tuple(image))
    return panoptic_quality(images, dict.fromkeys(range(classes), False))["All"]


def random_pair(rng: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    truth = np.kron(rng.integers(0, classes, (4, 4)), np.ones((3, 3), np.int64))
    predicted = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, classes, truth.shape), truth)
    truth[rng.random(truth.shape) < rng.choice([0, 0.2])] = IGNORE
    predicted[rng.random(truth.shape) < rng.choice([0, 0.2])] = -1
    return truth, predicted


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 5), images=st.integers(1, 3))
def test_equals_the_definition(seed: int, classes: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng, classes) for _ in range(images)]
    mine = mean_quality(sum_counts(class_matches(t, p, IGNORE) for t, p in pairs), range(classes))
    theirs = expected_of(pairs, classes)
    assert (mine.pq, mine.sq, mine.rq, mine.categories) == tuple(theirs[k] for k in ("pq", "sq", "rq", "n"))


@pytest.fixture
def dataset(tmp_path: Path, register: Callable[..., str]) -> tuple[str, list[dict[str, Any]], list[torch.Tensor]]:
    rng = np.random.default_rng(3)
    records, predictions = [], []
    for i in range(12):
        truth, predicted = random_pair(rng, 3)
        path = tmp_path / f"{i}.png"
        Image.fromarray(truth.astype(np.uint8)).save(path)
        records.append({"file_name": f"{i:02d}.jpg", "sem_seg_file_name": str(path)})
        predictions.append(torch.from_numpy(np.maximum(predicted, 0)))
    name = register(
        "test_semantic_pq",
        records,
        stuff_classes=["a", "b", "c", "never"],
        stuff_dataset_id_to_contiguous_id={10 + i: i for i in range(4)},
        ignore_label=IGNORE,
    )
    return name, records, predictions


def run(name: str, records: list[dict[str, Any]], predictions: list[torch.Tensor], **options: Any) -> dict[str, float]:
    evaluator = SemanticEvaluator(name, panoptic_quality=True, **options)
    evaluator.process(records, [{"sem_seg": p} for p in predictions])
    return evaluator.evaluate()["sem_seg"]


def test_evaluator_and_file_agree(dataset: Any, tmp_path: Path) -> None:
    name, records, predictions = dataset
    metrics = run(name, records, predictions, output_dir=str(tmp_path / "out"))
    pairs = [
        (np.array(Image.open(r["sem_seg_file_name"])).astype(np.int64), p.numpy())
        for r, p in zip(records, predictions, strict=True)
    ]
    theirs = expected_of(pairs, 4)
    assert metrics["PQ"] == 100 * theirs["pq"]
    assert math.isnan(metrics["PQ-never"])
    from_file = evaluate_semantic_pq(name, tmp_path / "out/sem_seg_predictions.json")
    assert from_file == pytest.approx({k: metrics[k] for k in from_file}, abs=0, rel=0, nan_ok=True)
    assert list(from_file) == ["PQ", "SQ", "RQ", "PQ-a", "PQ-b", "PQ-c", "PQ-never"]


def test_order_of_processes_does_not_matter(dataset: Any) -> None:
    name, records, predictions = dataset
    whole = run(name, records, predictions)
    parts = []
    for chosen in ([3, 0, 11, 8, 5], [], [10, 2, 1, 9, 4, 7, 6]):
        evaluator = SemanticEvaluator(name, panoptic_quality=True)
        evaluator.process([records[i] for i in chosen], [{"sem_seg": predictions[i]} for i in chosen])
        parts.append(pickle.loads(pickle.dumps(evaluator._part)))  # as it travels to the main process
    merged = SemanticEvaluator(name, panoptic_quality=True).evaluate_parts(parts)["sem_seg"]
    assert merged == pytest.approx(whole, abs=0, rel=0, nan_ok=True)


def test_images_without_prediction_are_missed(dataset: Any, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "empty.json"
    path.write_text("[]")
    with caplog.at_level("WARNING"):
        metrics = evaluate_semantic_pq(dataset[0], path)
    assert (metrics["PQ"], metrics["RQ"]) == (0, 0)
    assert "12 of 12 images have no prediction" in caplog.text


def test_user_errors(dataset: Any, tmp_path: Path, register: Callable[..., str]) -> None:
    name, _, _ = dataset
    path = tmp_path / "predictions.json"
    code = {"size": [12, 12], "counts": "`4"}
    record = {"file_name": "00.jpg", "category_id": 10, "segmentation": code}
    for content, message in (
        ({}, "list of records"),
        ([{**record, "category_id": 0}], "record 0: category 0 is not one of the dataset"),
        ([{**record, "file_name": "x.jpg"}], "'x.jpg' is not an image"),
        ([{**record, "segmentation": {**code, "size": [3, 3]}}], r"prediction of 00.jpg: .* size \[3, 3\]"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            evaluate_semantic_pq(name, path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        evaluate_semantic_pq(name, tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="no semantic ground truth"):
        evaluate_semantic_pq(register("test_no_semantic", [{"file_name": "a"}]), path)
