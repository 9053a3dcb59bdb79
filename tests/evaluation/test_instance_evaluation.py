from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from mask2former.evaluation import InstanceSegEvaluator
from mask2former.evaluation.instance_evaluation import merge_predictions

SIZE = 32


def masks_of(*squares: tuple[int, int, int]) -> torch.Tensor:
    """Squares (x, y, side) as masks (N, 32, 32)."""
    masks = torch.zeros(len(squares), SIZE, SIZE, dtype=torch.bool)
    for mask, (x, y, side) in zip(masks, squares, strict=True):
        mask[y : y + side, x : x + side] = True
    return masks


def predicted(masks: torch.Tensor, scores: list[float], classes: list[int]) -> dict[str, Instances]:
    instances = Instances((SIZE, SIZE))
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return {"instances": instances}


def _polygon(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


@pytest.fixture
def dataset(tmp_path: Path, register: Callable[..., str]) -> str:
    """Two images; dataset ids 10 ("cat") and 30 ("dog") are classes 0 and 1."""
    annotations = [
        {
            "id": 0,
            "image_id": 1,
            "category_id": 10,
            "segmentation": _polygon(0, 0, 8),
            "area": 64,
            "iscrowd": 0,
        },
        {
            "id": 1,
            "image_id": 1,
            "category_id": 30,
            "segmentation": _polygon(16, 16, 8),
            "area": 64,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 10,
            "segmentation": _polygon(4, 4, 8),
            "area": 64,
            "iscrowd": 0,
        },
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in (1, 2)],
        "categories": [{"id": 10, "name": "a"}, {"id": 30, "name": "b"}],
        "annotations": annotations,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return register(
        "test_instances",
        json_file=str(path),
        evaluator_type="coco",
        thing_classes=["cat", "dog"],
        thing_dataset_id_to_contiguous_id={10: 0, 30: 1},
    )


INPUTS = [{"image_id": 1}, {"image_id": 2}]


def run(evaluator: InstanceSegEvaluator, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    evaluator.reset()
    evaluator.process(INPUTS, outputs)
    return evaluator.evaluate()


def test_hand_computed(dataset: str) -> None:
    outputs = [predicted(masks_of((0, 0, 8), (16, 16, 8)), [0.9, 0.8], [0, 1]), predicted(masks_of(), [], [])]
    results = run(InstanceSegEvaluator(dataset), outputs)
    assert list(results) == ["segm"]
    segm = results["segm"]
    # cats: one of two found, precision 1 at 51 of the 101 recall points; dogs: all found
    assert segm["AP-cat"] == pytest.approx(100 * 51 / 101)
    assert segm["AP-dog"] == pytest.approx(100)
    assert segm["AP"] == segm["APs"] == pytest.approx((100 * 51 / 101 + 100) / 2)
    assert segm["AR@100"] == pytest.approx(75)
    assert math.isnan(segm["APm"])
    keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100", "AP-cat", "AP-dog"]
    assert list(segm) == keys
    assert all(type(v) is float for v in segm.values())


def test_equals_detectron2(dataset: str, tmp_path: Path) -> None:
    outputs = [
        predicted(masks_of((0, 0, 8), (17, 16, 8), (3, 3, 20)), [0.9, 0.8, 0.95], [0, 1, 0]),
        predicted(masks_of((4, 5, 8), (5, 4, 6)), [0.5, 0.4], [0, 0]),
    ]
    host = COCOEvaluator(dataset, ("segm",), False, str(tmp_path / "host"), use_fast_impl=False)
    expected = run(host, outputs)["segm"]
    # the host loses the annotation with id 0: count ids from 1 as it needs
    content = json.loads((tmp_path / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["id"] += 1
    (tmp_path / "instances.json").write_text(json.dumps(content))
    host = COCOEvaluator(dataset, ("segm",), False, str(tmp_path / "host"), use_fast_impl=False)
    fair = run(host, outputs)["segm"]
    mine = run(InstanceSegEvaluator(dataset), outputs)["segm"]
    for key, value in fair.items():
        assert mine[key] == value or (math.isnan(value) and math.isnan(mine[key]))
    assert fair["AP"] > expected["AP"]


def test_nothing_predicted(dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing = predicted(masks_of(), [], [])
    with caplog.at_level("WARNING"):
        results = run(InstanceSegEvaluator(dataset, output_dir=str(tmp_path / "out")), [nothing, nothing])
    assert results["segm"]["AP"] == 0
    assert math.isnan(results["segm"]["APl"])
    assert json.loads((tmp_path / "out/coco_instances_results.json").read_text()) == []
    assert "no instance" in caplog.text


def test_no_image_seen(dataset: str) -> None:
    evaluator = InstanceSegEvaluator(dataset)
    evaluator.reset()
    assert evaluator.evaluate()["segm"]["AP"] == 0


def test_result_file_is_what_pycocotools_reads(dataset: str, tmp_path: Path) -> None:
    outputs = [predicted(masks_of((0, 0, 8)), [0.75], [1]), predicted(masks_of(), [], [])]
    run(InstanceSegEvaluator(dataset, output_dir=str(tmp_path / "out")), outputs)
    (record,) = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert record.keys() == {"image_id", "category_id", "score", "segmentation"}
    assert (record["image_id"], record["category_id"], record["score"]) == (1, 30, 0.75)
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files == {"coco_instances_results.json", "instances_predictions.pth"}
    first, second = torch.load(tmp_path / "out/instances_predictions.pth", weights_only=True)
    assert first == {"image_id": 1, "instances": [{**record, "category_id": 1}]}  # as the model numbers the classes
    assert second == {"image_id": 2, "instances": []}


def test_boxes_come_from_masks(dataset: str) -> None:
    outputs = [
        predicted(masks_of((0, 0, 8), (16, 16, 8)), [0.9, 0.8], [0, 1]),
        predicted(masks_of((4, 4, 8)), [0.7], [0]),
    ]
    truth_has_boxes = InstanceSegEvaluator(dataset, tasks=("segm",))._truth
    assert truth_has_boxes is not None
    with pytest.raises(ValueError, match="no 'bbox'"):
        InstanceSegEvaluator(dataset, tasks=("segm", "bbox"))
    from detectron2.data import MetadataCatalog

    path = Path(MetadataCatalog.get(dataset).json_file)
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        x, y = annotation["segmentation"][0][:2]
        annotation["bbox"] = [x, y, 8, 8]
    path.write_text(json.dumps(content))
    results = run(InstanceSegEvaluator(dataset, tasks=("segm", "bbox")), outputs)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_boundary_ap(dataset: str, tmp_path: Path) -> None:
    outputs = [
        predicted(masks_of((0, 0, 8), (17, 16, 8)), [0.9, 0.8], [0, 1]),
        predicted(masks_of((4, 4, 8)), [0.7], [0]),
    ]
    results = run(InstanceSegEvaluator(dataset, ("boundary", "segm"), output_dir=str(tmp_path / "out")), outputs)
    assert results["boundary"]["AP-cat"] == results["segm"]["AP-cat"] == pytest.approx(100)
    # the dog is one column too far right: mask IoU 7/9; of its rim, 1 wide with 28 pixels, 14 are on the other's
    assert results["segm"]["AP-dog"] == pytest.approx(60)
    assert results["boundary"]["AP-dog"] == 0
    (record, *_) = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert "segmentation" in record
    only = run(InstanceSegEvaluator(dataset, ("boundary",)), outputs)
    assert list(only) == ["boundary"]


def test_more_than_100_detections(dataset: str) -> None:
    squares = [(i % 32, i // 32, 1) for i in range(200)]
    noise = predicted(masks_of(*squares, (0, 0, 8)), [0.9] * 200 + [0.1], [0] * 201)
    outputs = [noise, predicted(masks_of(), [], [])]
    assert run(InstanceSegEvaluator(dataset), outputs)["segm"]["AP-cat"] == 0
    segm = run(InstanceSegEvaluator(dataset, max_dets_per_image=300), outputs)["segm"]
    assert segm["AP-cat"] == pytest.approx(100 * 51 / 101 / 201)
    assert "AR@300" in segm


@pytest.mark.parametrize(("returned", "told"), [(None, False), (2, False), (1, True)])
def test_images_with_more_objects_than_the_model_returns_are_told(
    returned: int | None, told: bool, dataset: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mask2former"):
        InstanceSegEvaluator(dataset, returned=returned)
    assert told == ("images with more than 1 objects: 1 (up to 2)" in caplog.text)
    assert told == ("TEST.DETECTIONS_PER_IMAGE and" in caplog.text)


def test_merging_equals_one_process(dataset: str) -> None:
    first = predicted(masks_of((0, 0, 8), (16, 16, 8)), [0.9, 0.8], [0, 1])
    second = predicted(masks_of((4, 4, 8)), [0.7], [0])
    evaluators = [InstanceSegEvaluator(dataset) for _ in range(3)]
    evaluators[0].process(INPUTS[1:], [second])
    evaluators[2].process(INPUTS[:1], [first])  # the process between them got no image
    whole = InstanceSegEvaluator(dataset)
    expected = run(whole, [first, second])["segm"]
    assert [p["image_id"] for e in evaluators for p in e._predictions] == [2, 1]
    whole._predictions = [p for e in evaluators for p in e._predictions]
    assert whole.evaluate()["segm"] == pytest.approx(expected, abs=0, rel=0, nan_ok=True)


def test_image_predicted_twice_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        merged = merge_predictions([[(1, [{"score": 0.5}])], [(1, [{"score": 0.6}]), (2, [])]])
    assert merged == [{"score": 0.5}]
    assert "1 images were predicted more than once" in caplog.text


def test_non_finite_scores_are_left_out(dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    outputs = [
        predicted(masks_of((0, 0, 8), (16, 16, 8)), [math.nan, 0.8], [0, 1]),
        predicted(masks_of(), [], []),
    ]
    with caplog.at_level("WARNING"):
        segm = run(InstanceSegEvaluator(dataset), outputs)["segm"]
    assert (segm["AP-cat"], segm["AP-dog"]) == (0, pytest.approx(100))
    assert "non-finite" in caplog.text


def test_user_errors(dataset: str, register: Callable[..., str], tmp_path: Path) -> None:
    evaluator = InstanceSegEvaluator(dataset)
    with pytest.raises(ValueError, match="INSTANCE_ON"):
        evaluator.process(INPUTS[:1], [{"sem_seg": None}])
    with pytest.raises(ValueError, match=r"class 2 .*NUM_CLASSES"):
        evaluator.process(INPUTS[:1], [predicted(masks_of((0, 0, 8)), [0.9], [2])])
    no_masks = predicted(masks_of((0, 0, 8)), [0.9], [0])
    no_masks["instances"].remove("pred_masks")
    with pytest.raises(ValueError, match="pred_masks"):
        evaluator.process(INPUTS[:1], [no_masks])
    with pytest.raises(ValueError, match="keypoints"):
        InstanceSegEvaluator(dataset, tasks=("keypoints",))
    with pytest.raises(ValueError, match="json_file"):
        InstanceSegEvaluator(register("test_without_truth", [{"file_name": "a.png"}]))
    with pytest.raises(FileNotFoundError, match="absent.json"):
        InstanceSegEvaluator(register("test_absent", json_file=str(tmp_path / "absent.json")))


def test_sparse_thing_ids(dataset: str, register: Callable[..., str], tmp_path: Path) -> None:
    # as ADE20K: thing 30 keeps its place 7 among all classes, names are those of the things alone
    name = register(
        "test_sparse",
        json_file=str(tmp_path / "instances.json"),
        thing_classes=["cat", "dog"],
        thing_dataset_id_to_contiguous_id={30: 7, 10: 2},
    )
    outputs = [predicted(masks_of((16, 16, 8)), [0.8], [7]), predicted(masks_of(), [], [])]
    segm = run(InstanceSegEvaluator(name), outputs)["segm"]
    assert (segm["AP-cat"], segm["AP-dog"]) == (0, pytest.approx(100))


def test_categories_that_the_dataset_leaves_out(dataset: str, register: Callable[..., str], tmp_path: Path) -> None:
    name = register(
        "test_only_dogs",
        json_file=str(tmp_path / "instances.json"),
        thing_classes=["dog"],
        thing_dataset_id_to_contiguous_id={30: 0},
    )
    outputs = [predicted(masks_of((16, 16, 8)), [0.8], [0]), predicted(masks_of(), [], [])]
    assert run(InstanceSegEvaluator(name), outputs)["segm"]["AP"] == pytest.approx(100)


def test_dataset_without_json_is_converted(register: Callable[..., str]) -> None:
    box = {"bbox": [0, 0, 8, 8], "bbox_mode": 0, "category_id": 0, "segmentation": _polygon(0, 0, 8)}
    record = {"file_name": "1.png", "image_id": 1, "height": SIZE, "width": SIZE, "annotations": [box]}
    name = register("test_converted", [record], thing_classes=["cat"])
    evaluator = InstanceSegEvaluator(name)
    evaluator.process(INPUTS[:1], [predicted(masks_of((0, 0, 8)), [0.9], [0])])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)


def test_test_set_without_annotations(dataset: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    outputs = [predicted(masks_of((0, 0, 8)), [0.9], [0]), predicted(masks_of(), [], [])]
    assert run(InstanceSegEvaluator(dataset, output_dir=str(tmp_path / "out")), outputs) == {}
    assert len(json.loads((tmp_path / "out/coco_instances_results.json").read_text())) == 1


def test_a_subclass_in_the_form_of_detectron2s_evaluator(dataset: str) -> None:
    """As other projects write it: own `process` with detectron2's records, own evaluation, own metrics."""

    class Mine(InstanceSegEvaluator):
        def process(self, inputs: Any, outputs: Any) -> None:
            for image, output in zip(inputs, outputs, strict=True):
                instances = output["instances"].to(self._cpu_device)
                records = instances_to_coco_json(instances, image["image_id"])
                self._predictions.append({"image_id": image["image_id"], "instances": records})

        def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
            assert [len(prediction["instances"]) for prediction in predictions] == [2, 0]
            super()._eval_predictions(predictions, img_ids=img_ids)
            assert self._do_evaluation and len(self._coco_api.imgs) == 2 and self._max_dets_per_image == 100
            self._results["mine"] = {"objects": 2.0}

        def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> dict[str, float]:
            assert iou_type == "segm" and class_names == ["cat", "dog"]
            precision = coco_eval.eval["precision"][:, :, 0, 0, -1]
            results = super()._derive_coco_results(coco_eval, iou_type, class_names)
            return {**results, "own": float(coco_eval.stats[0] * 100), "cat": float(precision.mean() * 100)}

    outputs = [predicted(masks_of((0, 0, 8), (16, 16, 8)), [0.9, 0.8], [0, 1]), predicted(masks_of(), [], [])]
    results = run(Mine(dataset, use_fast_impl=False), outputs)
    plain = run(InstanceSegEvaluator(dataset, get_cfg()), outputs)
    assert results["segm"]["AP"] == results["segm"]["own"] == plain["segm"]["AP"]
    assert results["segm"]["cat"] == pytest.approx(results["segm"]["AP-cat"])
    assert results["mine"] == {"objects": 2.0}
