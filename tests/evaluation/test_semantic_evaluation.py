"""Semantic metrics against a slow count by hand, and detectron2."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.evaluation import SemSegEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.errors import BadRecordError
from mask2former.evaluation import SemanticEvaluator
from mask2former.evaluation.semantic_evaluation import confusion_matrix, semantic_metrics


def oracle(truth: np.ndarray, predicted: np.ndarray, classes: int, ignore: int) -> dict[str, float]:
    """Count one pixel at a time."""
    both, in_truth, in_prediction = [0] * classes, [0] * classes, [0] * classes
    for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if t == ignore:
            continue
        in_truth[t] += 1
        in_prediction[p] += 1
        both[t] += t == p
    total = sum(in_truth)
    ious = {c: both[c] / (in_truth[c] + in_prediction[c] - both[c]) for c in range(classes) if in_truth[c]}
    accuracies = {c: both[c] / in_truth[c] for c in ious}
    nan = math.nan
    return {
        "mIoU": 100 * sum(ious.values()) / len(ious) if total else nan,
        "fwIoU": 100 * sum(iou * in_truth[c] / total for c, iou in ious.items()) if total else nan,
        "mACC": 100 * sum(accuracies.values()) / len(ious) if total else nan,
        "pACC": 100 * sum(both) / total if total else nan,
        **{f"IoU-c{c}": 100 * ious.get(c, nan) for c in range(classes)},
        **{f"ACC-c{c}": 100 * accuracies.get(c, nan) for c in range(classes)},
    }


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(1, 6),
    used=st.integers(1, 6),
    ignore=st.sampled_from([255, 6, -1]),
)
def test_equals_counting_by_hand(seed: int, classes: int, used: int, ignore: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, min(used, classes), (9, 7))
    truth[rng.random(truth.shape) < rng.choice([0.0, 0.3, 1.0])] = ignore
    predicted = rng.integers(0, classes, (9, 7))
    metrics = semantic_metrics(confusion_matrix(truth, predicted, classes, ignore), [f"c{c}" for c in range(classes)])
    assert metrics == pytest.approx(oracle(truth, predicted, classes, ignore), rel=1e-12, nan_ok=True)


def test_out_of_range_labels() -> None:
    ok = np.zeros((2, 2), np.int64)
    with pytest.raises(ValueError, match=r"labels \[-1, 9\] are outside \[0, 2\]"):
        confusion_matrix(np.array([[0, 9], [-1, 255]]), ok, 3, 255)
    with pytest.raises(ValueError, match="class 3, the dataset has 3"):
        confusion_matrix(ok, ok + 3, 3, 255)
    with pytest.raises(ValueError, match="ground truth is"):
        confusion_matrix(ok, ok[1:], 3, 255)


CLASSES = ["sky", "road", "car", "never"]


@pytest.fixture
def dataset(tmp_path: Path, register: Callable[..., str]) -> tuple[str, list[dict[str, Any]], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    records, truths = [], []
    for i in range(3):
        labels = rng.integers(0, 3, (12, 10)).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.2] = 255
        path = tmp_path / f"{i}.png"
        Image.fromarray(labels).save(path)
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path), "image_id": i})
        truths.append(labels.astype(np.int64))
    name = register(
        "test_semantic",
        records,
        evaluator_type="sem_seg",
        ignore_label=255,
        stuff_classes=CLASSES,
        stuff_dataset_id_to_contiguous_id={10 * i + 1: i for i in range(4)},
    )
    return name, records, truths


def scores_for(truths: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Scores (4, h, w) that often agree with the ground truth."""
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for truth in truths:
        right = torch.as_tensor(np.where(truth == 255, 0, truth))
        noise = torch.rand(4, *truth.shape, generator=generator)
        outputs.append({"sem_seg": noise + 0.5 * torch.nn.functional.one_hot(right, 4).permute(2, 0, 1)})
    return outputs


def inputs_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: r[k] for k in ("file_name", "image_id")} for r in records]


def test_evaluator_equals_detectron2_and_the_oracle(dataset: Any) -> None:
    name, records, truths = dataset
    outputs = scores_for(truths)
    evaluator = SemanticEvaluator(name)
    evaluator.reset()
    evaluator.process(inputs_of(records), outputs)
    results = evaluator.evaluate()
    assert results is not None

    def load(path: str, dtype: Any = None) -> np.ndarray:
        return np.array(Image.open(path), dtype=dtype)

    host = SemSegEvaluator(name, distributed=False, sem_seg_loading_fn=load)
    host.reset()
    host.process(inputs_of(records), outputs)
    theirs = {k: v for k, v in host.evaluate()["sem_seg"].items() if "ound" not in k and "min(" not in k}
    assert list(results["sem_seg"]) == list(theirs)
    for key, value in theirs.items():
        assert results["sem_seg"][key] == value or (math.isnan(value) and math.isnan(results["sem_seg"][key]))
    assert math.isnan(results["sem_seg"]["IoU-never"])
    predicted = np.concatenate([o["sem_seg"].argmax(0).numpy() for o in outputs])
    by_hand = oracle(np.concatenate(truths), predicted, 4, 255)
    assert results["sem_seg"]["mIoU"] == pytest.approx(by_hand["mIoU"], rel=1e-12)


def test_class_maps_are_accepted(dataset: Any) -> None:
    name, records, truths = dataset
    outputs = scores_for(truths)
    both = []
    for predictions in (outputs, [{"sem_seg": o["sem_seg"].argmax(0)} for o in outputs]):
        evaluator = SemanticEvaluator(name)
        evaluator.process(inputs_of(records), predictions)
        both.append(evaluator.evaluate())
    assert both[0]["sem_seg"] == pytest.approx(both[1]["sem_seg"], abs=0, rel=0, nan_ok=True)


def test_written_predictions(dataset: Any, tmp_path: Path) -> None:
    name, records, truths = dataset
    outputs = scores_for(truths)
    evaluator = SemanticEvaluator(name, output_dir=str(tmp_path / "out"))
    evaluator.process(inputs_of(records), outputs)
    evaluator.evaluate()
    written = json.loads((tmp_path / "out/sem_seg_predictions.json").read_text())
    for i, output in enumerate(outputs):
        classes = output["sem_seg"].argmax(0).numpy()
        mine = [r for r in written if r["file_name"] == f"{i}.jpg"]
        assert [r["category_id"] for r in mine] == [10 * int(c) + 1 for c in np.unique(classes)]
        for record in mine:
            decoded = mask_util.decode(record["segmentation"])
            assert (np.asarray(decoded) == (classes == record["category_id"] // 10)).all()


def test_merging_equals_one_process(dataset: Any) -> None:
    name, records, truths = dataset
    outputs, inputs = scores_for(truths), inputs_of(records)
    evaluators = [SemanticEvaluator(name) for _ in range(3)]
    evaluators[0].process(inputs[:1], outputs[:1])
    evaluators[2].process(inputs[1:], outputs[1:])
    merged = evaluators[0].evaluate_parts([e._part for e in evaluators])
    whole = SemanticEvaluator(name)
    whole.process(inputs, outputs)
    assert merged["sem_seg"] == pytest.approx(whole.evaluate()["sem_seg"], abs=0, rel=0, nan_ok=True)


def test_nothing_seen_is_nan(dataset: Any) -> None:
    results = SemanticEvaluator(dataset[0]).evaluate()
    assert results is not None
    assert all(math.isnan(v) for v in results["sem_seg"].values())


def test_user_errors(dataset: Any, register: Callable[..., str], tmp_path: Path) -> None:
    name, records, truths = dataset
    inputs, outputs = inputs_of(records), scores_for(truths)
    evaluator = SemanticEvaluator(name)
    with pytest.raises(ValueError, match="SEMANTIC_ON"):
        evaluator.process(inputs[:1], [{}])
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        evaluator.process(inputs[:1], [{"sem_seg": torch.zeros(3, 12, 10)}])
    with pytest.raises(ValueError, match=r"0\.png: prediction is"):
        evaluator.process(inputs[:1], [{"sem_seg": torch.zeros(4, 11, 10)}])
    with pytest.raises(ValueError, match=r"other\.jpg"):
        evaluator.process([{"file_name": "other.jpg", "image_id": 0}], outputs[:1])
    Image.fromarray(np.full((12, 10), 17, np.uint8)).save(records[0]["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"0\.png: labels \[17\]"):
        evaluator.process(inputs[:1], outputs[:1])
    Image.new("RGB", (10, 12)).save(records[0]["sem_seg_file_name"])
    with pytest.raises(ValueError, match="one channel"):
        evaluator.process(inputs[:1], outputs[:1])
    Path(records[0]["sem_seg_file_name"]).unlink()
    with pytest.raises(ValueError, match=r"0\.png"):
        evaluator.process(inputs[:1], outputs[:1])
    with pytest.raises(ValueError, match="stuff_classes"):
        SemanticEvaluator(register("test_no_classes", []))
    with pytest.raises(ValueError, match="no semantic ground truth"):
        SemanticEvaluator(register("test_no_labels", [{"file_name": "a"}], stuff_classes=["a"]))


def test_labels_from_panoptic_annotations(random_panoptic: Callable[..., Any], register: Callable[..., str]) -> None:
    truth = random_panoptic(2, images=3)
    categories = truth["content"]["categories"]
    class_of = {c["id"]: i for i, c in enumerate(categories)}
    name = register(
        "test_semantic_from_panoptic",
        [{"file_name": f"{i}.jpg", "image_id": i} for i in range(3)],
        panoptic_json=truth["json"],
        panoptic_root=truth["root"],
        stuff_classes=[c["name"] for c in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: class_of[c["id"]] for c in categories if c["isthing"]},
        stuff_dataset_id_to_contiguous_id=class_of,
    )
    evaluator = SemanticEvaluator(name)
    for i, annotation in enumerate(truth["content"]["annotations"]):
        png = np.array(Image.open(Path(truth["root"]) / annotation["file_name"])).astype(int)
        ids = png[..., 0] + 256 * png[..., 1] + 65536 * png[..., 2]
        labels = np.full(ids.shape, 255)
        for segment in annotation["segments_info"]:
            labels[ids == segment["id"]] = class_of[segment["category_id"]]
        _, made = evaluator._read_truth({"file_name": f"{i}.jpg", "image_id": i})
        assert (made == labels).all()


def test_one_class_is_warned_about(
    tmp_path: Path, register: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    evaluator = SemanticEvaluator(register("test_one_class", [record], stuff_classes=["only"]))
    evaluator.process([record], [{"sem_seg": torch.zeros(1, 4, 4)}])
    with caplog.at_level("WARNING"):
        assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    assert "one class" in caplog.text


@pytest.mark.parametrize("bad", [None, Image.new("L", (9, 8), 7), Image.new("L", (8, 9)), Image.new("RGB", (9, 8))])
def test_bad_label_maps(
    bad: Image.Image | None, register: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    Image.new("L", (9, 8), 1).save(files[0])
    if bad is not None:
        bad.save(files[1])
    records = [{"file_name": f"{n}.jpg", "sem_seg_file_name": file} for n, file in enumerate(files)]
    name = register("test_bad_label_maps", records, stuff_classes=["a", "b"], ignore_label=255)
    inputs = [{"file_name": record["file_name"], "height": 8, "width": 9} for record in records]
    outputs = [{"sem_seg": torch.ones(8, 9, dtype=torch.int64)}] * 2
    with pytest.raises(BadRecordError, match=r"1\.png: "):
        SemanticEvaluator(name).process(inputs, outputs)
    evaluator = SemanticEvaluator(name, skip_bad_records=True, panoptic_quality=True)
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert results is not None and results["sem_seg"]["mIoU"] == results["sem_seg"]["PQ"] == 100
    assert "1 images are left out, because their ground truth is bad: 1.jpg" in caplog.text
    assert (
        "1 of 2 classes do not occur in the ground truth" in caplog.text and "value 255 are ignored): a" in caplog.text
    )
