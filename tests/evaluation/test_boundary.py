"""Boundaries, boundary AP and boundary IoU against the definition, pixel by pixel."""

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
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation import SemanticEvaluator, evaluate_coco
from mask2former.evaluation.boundary import boundary_ap
from mask2former.evaluation.boundary_iou import (
    boundary,
    boundary_areas,
    boundary_overlap,
    boundary_rles,
    boundary_width,
)
from mask2former.evaluation.ground_truth import index_coco


def by_definition(mask: np.ndarray, width: int) -> np.ndarray:
    """Return mask pixels at most `width` steps (8-connected) from a pixel outside the mask or the image."""
    height, length = mask.shape
    padded = np.pad(mask, width)
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(length):
            result[y, x] = mask[y, x] and not padded[y : y + 2 * width + 1, x : x + 2 * width + 1].all()
    return result


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    width=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_boundary_equals_its_definition(seed: int, size: tuple[int, int], width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    assert (boundary(mask, width) == by_definition(mask, width)).all()


def test_width_of_the_boundary() -> None:
    assert boundary_width((480, 640)) == 16  # 2 % of 800
    assert boundary_width((1024, 2048)) == 46
    assert boundary_width((10, 10)) == 1
    with pytest.raises(ValueError, match="dilation_ratio"):
        boundary_width((10, 10), 0)


def test_boundaries_of_run_length_codes() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((40, 60)) < share for share in (0.9, 0.0, 1.0, 0.5)]
    encoded = [mask_util.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
    found = mask_util.decode(boundary_rles(encoded, 0.05))
    for i, mask in enumerate(masks):
        assert (found[..., i].astype(bool) == by_definition(mask, boundary_width((40, 60), 0.05))).all()
    assert boundary_rles([]) == []


class FullBoundaryEval(COCOeval):
    """Run pycocotools with the paper's overlap for every pair, from masks."""

    def __init__(self, *arguments: Any, width: int) -> None:
        super().__init__(*arguments)
        self.width = width

    def computeIoU(self, image: Any, category: Any) -> Any:
        ious = super().computeIoU(image, category)
        if len(ious) == 0:
            return ious
        truths, detections = self._gts[image, category], self._dts[image, category]
        order = np.argsort([-d["score"] for d in detections], kind="mergesort")
        detections = [detections[i] for i in order[: self.params.maxDets[-1]]]

        def narrow(annotation: dict[str, Any]) -> dict[str, Any]:
            mask = mask_util.decode(annotation["segmentation"]).astype(bool)
            return mask_util.encode(np.asfortranarray(by_definition(mask, self.width).astype(np.uint8)))

        crowd = [int(t["iscrowd"]) for t in truths]
        return np.minimum(ious, mask_util.iou([narrow(d) for d in detections], [narrow(t) for t in truths], crowd))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), ratio=st.sampled_from([0.02, 0.06]))
def test_boundary_ap_equals_pycocotools_with_boundary_iou(
    random_coco: Callable[..., Any], seed: int, ratio: float
) -> None:
    truth, results = random_coco(seed, images=2, truths=6, detections=10)
    if not results:
        return
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        engine = FullBoundaryEval(
            coco, coco.loadRes(copy.deepcopy(results)), "segm", width=boundary_width((40, 47), ratio)
        )
        engine.evaluate()
        engine.accumulate()
    scores = evaluate_coco(index_coco(copy.deepcopy(truth)), results, "boundary", dilation_ratio=ratio)
    np.testing.assert_array_equal(scores.precision, engine.eval["precision"])
    np.testing.assert_array_equal(scores.recall, engine.eval["recall"])


def square(x: int, side: int = 40, size: int = 100) -> dict[str, Any]:
    mask = np.zeros((size, size), np.uint8, order="F")
    mask[20 : 20 + side, x : x + side] = 1
    encoded = mask_util.encode(mask)
    return {"size": [size, size], "counts": encoded["counts"].decode()}


def test_hand_computed_overlap() -> None:
    # 40 x 40, moved by 4: mask IoU 36/44. Boundary 3 wide (2 % of 141): 40^2 - 34^2 = 444 pixels each. Common: in the
    # 6 rows above and below all 36 common columns, in the 34 between none of the moved sides.
    overlap = boundary_overlap([square(24)], [square(20)], [0])
    assert overlap[0, 0] == pytest.approx(216 / (2 * 444 - 216))
    assert mask_util.iou([square(24)], [square(20)], [0])[0, 0] == pytest.approx(36 / 44)
    assert boundary_overlap([square(24)], [square(70, 20)], [0])[0, 0] == 0
    # An empty frame has the boundary of the full square: there the mask IoU, 444 of 1600 pixels, decides.
    frame = boundary_rles([square(20)])
    assert boundary_overlap(frame, [square(20)], [0])[0, 0] == pytest.approx(444 / 1600)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two squares of two classes; one found exactly, one moved by 4 pixels."""
    truths = [
        {"id": i, "image_id": 1, "category_id": i, "iscrowd": 0, "area": 1600, "segmentation": square(x)}
        for i, x in ((1, 20), (2, 55))
    ]
    content = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "exact"}, {"id": 2, "name": "moved"}, {"id": 3, "name": "absent"}],
        "annotations": truths,
    }
    results = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": square(20)},
        {"image_id": 1, "category_id": 2, "score": 0.9, "segmentation": square(59)},
    ]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path / "truth.json", tmp_path / "results.json"


def test_boundary_ap_of_files(files: tuple[Path, Path]) -> None:
    metrics = boundary_ap(*files)
    assert metrics["AP-exact"] == pytest.approx(100)
    assert metrics["AP-moved"] == 0  # boundary IoU 0.32
    assert math.isnan(metrics["AP-absent"])
    assert metrics["AP"] == pytest.approx(50)
    assert boundary_ap(*files, iou_type="segm")["AP-moved"] == pytest.approx(70)  # 36/44 reaches 0.5 ... 0.8
    # ever wider, the boundary becomes the mask
    assert boundary_ap(*files, dilation_ratio=0.5)["AP-moved"] == pytest.approx(70)


def test_errors_of_files(files: tuple[Path, Path]) -> None:
    truth, results = files
    good = json.loads(results.read_text())
    for content, message in (
        ({}, "list of records"),
        ([{**good[0], "image_id": 7}], "image 7"),
        ([{"image_id": 1}], "record 0: has no category_id and no score and no segmentation"),
        ([{**good[0], "segmentation": [[0, 0, 1, 1, 0, 1]]}], "RLE"),
    ):
        results.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            boundary_ap(truth, results)
    results.write_text("[]")
    assert boundary_ap(truth, results)["AP"] == 0
    document = json.loads(truth.read_text())
    del document["annotations"]
    truth.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="no annotations"):
        boundary_ap(truth, results)


@pytest.mark.parametrize("seed", range(5))
def test_boundary_areas_of_label_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 3, (4, 5)), np.ones((4, 4), np.int64))
    predicted = np.kron(rng.integers(0, 4, (4, 5)), np.ones((4, 4), np.int64))
    truth[rng.random(truth.shape) < 0.1] = 255
    found = boundary_areas(truth, predicted, 5, 255, 0.05)
    for label in range(5):
        one, other = by_definition(truth == label, 1), by_definition(predicted == label, 1) & (truth != 255)
        assert found[label].tolist() == [(one & other).sum(), (one | other).sum()]


def test_semantic_boundary_iou(tmp_path: Path, register: Callable[..., str]) -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[:, 10:] = 1
    Image.fromarray(truth).save(tmp_path / "a.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    name = register("test_boundary_iou", [record], stuff_classes=["left", "right", "never"])
    moved = torch.from_numpy(np.roll(truth, 2, axis=1)).long()
    moved[:, :2] = 0
    evaluator = SemanticEvaluator(name, boundary=True)
    evaluator.process([record], [{"sem_seg": moved}])
    metrics = evaluator.evaluate()["sem_seg"]
    # a boundary of 1: left 10 x 20 has 56 pixels, 12 x 20 has 60; common the outer side and 9 of top and bottom each
    assert metrics["BIoU-left"] == pytest.approx(100 * (20 + 2 * 9) / (56 + 60 - 38))
    assert math.isnan(metrics["BIoU-never"])
    assert metrics["mBIoU"] == pytest.approx((metrics["BIoU-left"] + metrics["BIoU-right"]) / 2)
    assert math.isnan(SemanticEvaluator(name, boundary=True).evaluate()["sem_seg"]["mBIoU"])
    exact = SemanticEvaluator(name, boundary=True)
    exact.process([record], [{"sem_seg": torch.from_numpy(truth).long()}])
    assert exact.evaluate()["sem_seg"]["mBIoU"] == 100
