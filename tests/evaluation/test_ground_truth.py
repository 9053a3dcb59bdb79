"""What trains evaluates: the ground truth of evaluation comes from the readers of training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from PIL import Image

from mask2former.data import register_coco_json, register_panoptic
from mask2former.data.datasets.catalog import unregister
from mask2former.errors import BadRecordError
from mask2former.evaluation import InstanceSegEvaluator, PanopticEvaluator, SemanticEvaluator, load_coco_truth
from mask2former.evaluation.ground_truth import PanopticTruth, truth_from_panoptic
from mask2former.structures.panoptic_ids import id_to_rgb

SIZE = 40
NAME = "ground_truth_test"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    unregister(NAME)


def square(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def instances(count: int = 3) -> dict[str, Any]:
    """Return images with one square of 20 x 20 pixels each."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(count)],
        "categories": [{"id": 4, "name": "cell"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 4, "iscrowd": 0, "area": 400, "segmentation": square(5, 5, 20)}
            for i in range(count)
        ],
    }


def registered(tmp_path: Path, content: dict[str, Any], skip: bool = False) -> Path:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    register_coco_json(NAME, path, tmp_path, skip_bad_records=skip)
    return path


def prediction() -> dict[str, Instances]:
    result = Instances((SIZE, SIZE))
    result.scores, result.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    result.pred_masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    result.pred_masks[:, 5:25, 5:25] = True
    return {"instances": result}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1, "12 px", 10**400, ...])
def test_an_impossible_area_is_that_of_the_mask(tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    content = instances()
    for entry in content["annotations"]:
        entry.pop("area") if value is ... else entry.update(area=value)
    path = registered(tmp_path, content)
    assert [entry["area"] for entry in load_coco_truth(path).dataset["annotations"]] == [400] * 3
    assert caplog.text.count("3 of 3 annotations have no 'area'") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": [[10, 10, 20, 10, None, 20, 10, 20]]},
        {"segmentation": [[10, 10, 3e9, 10, 20, 20]]},
        {"segmentation": {"size": [SIZE, SIZE], "counts": [10**36]}},
        {"category_id": 5},
        {"iscrowd": "0"},
        {"id": 0},
        {"image_id": 1.0, "id": "x"},
        {"bbox": [1, 2]},
    ],
)
def test_training_and_evaluation_leave_out_the_same(tmp_path: Path, change: dict[str, Any]) -> None:
    content = instances()
    content["annotations"][1].update(change)
    registered(tmp_path, content)
    with pytest.raises(BadRecordError) as of_training:
        DatasetCatalog.get(NAME)
    with pytest.raises(BadRecordError) as of_evaluation:
        InstanceSegEvaluator(NAME)
    assert str(of_training.value) == str(of_evaluation.value)
    registered(tmp_path, content, skip=True)
    evaluator = InstanceSegEvaluator(NAME, tasks=("segm", "boundary"))
    assert evaluator._truth is not None
    assert set(evaluator._truth.imgs) == {record["image_id"] for record in DatasetCatalog.get(NAME)}


@pytest.mark.parametrize(("shift", "category"), [(-1, 4), (-2, 0), (0, 977), (10**25, 4)])
def test_ids_of_exports_change_no_result(tmp_path: Path, shift: int, category: int) -> None:
    """From 0, negative, far above 64 bits; "info": null."""
    content = instances() | {"info": None}
    content["categories"][0]["id"] = category
    for entry in (*content["images"], *content["annotations"]):
        entry["id"] += shift
    for entry in content["annotations"]:
        entry["image_id"], entry["category_id"] = entry["image_id"] + shift, category
    registered(tmp_path, content)
    evaluator = InstanceSegEvaluator(NAME)
    for record in DatasetCatalog.get(NAME)[:2]:
        assert [entry["category_id"] for entry in record["annotations"]] == [0]
        evaluator.process([record], [prediction()])
    assert evaluator.evaluate()["segm"]["AR@100"] == pytest.approx(200 / 3)


def test_images_that_the_loader_skipped_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for skip, recall in ((False, 100 / 3), (True, 100)):
        registered(tmp_path, instances(), skip)
        evaluator = InstanceSegEvaluator(NAME)
        evaluator.process([{"image_id": 2}], [prediction()])
        assert evaluator.evaluate()["segm"]["AR@100"] == pytest.approx(recall)
    assert "2 of 3 images are left out" in caplog.text


def test_masks_without_a_pixel_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = instances()
    content["annotations"][0]["segmentation"] = square(100, 100, 20)
    load_coco_truth(registered(tmp_path, content))
    assert "1 of 3 annotations have no pixel in their image" in caplog.text
    for entry in content["annotations"]:
        entry["segmentation"] = square(100, 100, 20)
    with pytest.raises(BadRecordError, match="none of its 3 objects has a pixel"):
        load_coco_truth(registered(tmp_path, content))


def test_boxes_as_corners_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = instances()
    for entry in content["annotations"]:
        entry["bbox"] = [5, 5, 25, 25]
    path = registered(tmp_path, content)
    load_coco_truth(path)
    assert not caplog.text
    load_coco_truth(path, needs=("bbox",))
    assert "look" in caplog.text and "[x1, y1, x2, y2]" in caplog.text
    content["annotations"][0]["bbox"] = [25, 25, -20, -20]
    with pytest.raises(BadRecordError, match="annotation 0: 'bbox' .* negative"):
        load_coco_truth(registered(tmp_path, content), needs=("bbox",))


def panoptic(tmp_path: Path, skip: bool, change: Any = None) -> dict[str, Any]:
    """Register three images of a thing (id 300) above stuff (id 2)."""
    ids = np.full((SIZE, SIZE), 2)
    ids[:9] = 300
    for number in range(3):
        Image.fromarray(id_to_rgb(ids)).save(tmp_path / f"{number}.png")
    segments = [{"id": 300, "category_id": 1}, {"id": 2, "category_id": 6, "iscrowd": None}]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(3)],
        "categories": [{"id": 1, "name": "a", "isthing": 1}, {"id": 6, "name": "b", "isthing": 0}],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": [dict(s) for s in segments]} for i in range(3)
        ],
    }
    if callable(change):
        change(content)
    (tmp_path / "p.json").write_text(json.dumps(content))
    register_panoptic(NAME, tmp_path / "p.json", tmp_path, tmp_path, skip_bad_records=skip)
    return content


def panoptic_prediction() -> dict[str, Any]:
    ids = torch.full((SIZE, SIZE), 2, dtype=torch.int32)
    ids[:9] = 1
    segments = [{"id": 1, "category_id": 0, "isthing": True}, {"id": 2, "category_id": 1, "isthing": False}]
    return {"panoptic_seg": (ids, segments), "sem_seg": (ids - 1).long(), **prediction()}


def _segment(**changes: Any) -> Any:
    return lambda content: content["annotations"][1]["segments_info"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _segment(id="300"),
        _segment(id=0),
        _segment(id=2),
        _segment(id=2**24),
        _segment(category_id=9),
        _segment(category_id=[1]),
        _segment(iscrowd="0"),
        lambda content: content["annotations"][1].update(segments_info={}),
        lambda content: content["annotations"][1].update(file_name=5),
        lambda content: content["annotations"].__setitem__(1, None),
    ],
)
def test_bad_panoptic_annotations(tmp_path: Path, change: Any) -> None:
    panoptic(tmp_path, False, change)
    for read in (lambda: DatasetCatalog.get(NAME), lambda: PanopticEvaluator(NAME)):
        with pytest.raises(BadRecordError, match=r"p\.json: annotations\[1\]: malformed"):
            read()
    panoptic(tmp_path, True, change)
    assert [record["image_id"] for record in DatasetCatalog.get(NAME)] == [0, 2]
    evaluator = PanopticEvaluator(NAME)
    for number in (0, 2):
        evaluator.process([{"image_id": number, "file_name": "x"}], [panoptic_prediction()])
    result = evaluator.evaluate()
    assert result is not None and result["panoptic_seg"]["PQ"] == 100


def test_colors_of_categories(tmp_path: Path) -> None:
    for color in (5, [1, 2], [1, 2, 300], "red", [1, None, 2]):
        with pytest.raises(BadRecordError, match=r"categories\[0\]: 'color' must be"):
            panoptic(tmp_path, False, lambda content, color=color: content["categories"][0].update(color=color))


@pytest.mark.parametrize("image", [None, Image.new("L", (SIZE, SIZE)), Image.new("RGB", (SIZE + 1, SIZE)), b"\x89PNG"])
def test_bad_panoptic_files(tmp_path: Path, image: Any, caplog: pytest.LogCaptureFixture) -> None:
    panoptic(tmp_path, True)
    if image is None:
        (tmp_path / "1.png").unlink()
    elif isinstance(image, bytes):
        (tmp_path / "1.png").write_bytes(image)
    else:
        image.save(tmp_path / "1.png")
    inputs = [{"image_id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(3)]
    quality, semantic = PanopticEvaluator(NAME), SemanticEvaluator(NAME)
    for one in inputs:
        quality.process([one], [panoptic_prediction()])
        semantic.process([one], [panoptic_prediction()])
    results = quality.evaluate(), semantic.evaluate()
    assert results[0] is not None and results[0]["panoptic_seg"]["PQ"] == 100
    assert results[1] is not None and results[1]["sem_seg"]["mIoU"] == 100
    assert "1 of 3 annotated images have no prediction; their segments are left out" in caplog.text
    assert "1 images are left out, because their ground truth is bad: 1.png" in caplog.text
    truth = PanopticTruth(str(tmp_path / "p.json"), str(tmp_path))
    assert sorted(truth_from_panoptic(truth, skip_bad_records=True).imgs) == [0, 2]
    strict = PanopticTruth(str(tmp_path / "p.json"), str(tmp_path))
    with pytest.raises(BadRecordError, match=r"1\.png"):
        truth_from_panoptic(strict)
    panoptic_strict = PanopticEvaluator(NAME)
    panoptic_strict._skip = False
    with pytest.raises(BadRecordError, match=r"1\.png"):
        panoptic_strict.process(inputs[1:2], [panoptic_prediction()])


def test_inconsistent_segments_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segments_info"][0]["id"] = 77
        content["annotations"][1]["segments_info"][0]["area"] = 5
        content["annotations"][2]["segments_info"][0]["area"] = "12 px"

    panoptic(tmp_path, False, change)
    evaluator = PanopticEvaluator(NAME)
    for number in range(3):
        evaluator.process([{"image_id": number, "file_name": "x"}], [panoptic_prediction()])
    assert evaluator.evaluate() is not None
    for text in ("360 pixels have ids that are not in", "1 segments of 'segments_info'", "1 segments have an 'area'"):
        assert text in caplog.text
