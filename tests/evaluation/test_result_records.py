"""Results from files: counts that pycocotools never finishes, and other bad records, are one error."""

from __future__ import annotations

from typing import Any

import pytest

from mask2former.errors import BadRecordError
from mask2former.evaluation.ground_truth import index_coco
from mask2former.evaluation.result_records import checked_results

TRUTH = index_coco(
    {"images": [{"id": 1, "height": 4, "width": 5}], "categories": [{"id": 2, "name": "a"}], "annotations": []}
)
GOOD = {"image_id": 1, "category_id": 2, "score": 1, "segmentation": {"size": [4, 5], "counts": [3, 17]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [4, 5], "counts": [10**36]}}, "longer than any image"),
        ({"segmentation": {"size": [4, 5], "counts": [3, 4]}}, "add up"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}, "the image has"),
        ({"segmentation": {"size": [4.0, 5.0], "counts": [20]}}, "the image has"),
        ({"segmentation": [[0, 0, 3, 0, 3, 3]]}, "RLE"),
        ({"segmentation": None}, "RLE"),
        ({"score": float("nan")}, "'score'"),
        ({"score": None}, "'score'"),
        ({"score": "0.5"}, "'score'"),
        ({"score": True}, "'score'"),
        ({"score": 10**400}, "'score'"),
        ({"image_id": 9}, "image 9"),
        ({"image_id": [1]}, "image"),
        ({"category_id": "2"}, "category '2'"),
        ({"category_id": None}, "category None"),
    ],
)
def test_bad_records(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecordError, match=f"r.json: record 1: .*{message}"):
        checked_results([GOOD, {**GOOD, **change}], TRUTH, "segm", "r.json")


def test_good_records(caplog: pytest.LogCaptureFixture) -> None:
    records = checked_results([GOOD, {**GOOD, "category_id": 7}], TRUTH, "boundary")
    assert records[0]["segmentation"] == {"size": [4, 5], "counts": "3a0"}
    assert "1 of 2 records have a category that the ground truth lacks" in caplog.text
    with pytest.raises(BadRecordError, match="record 0: has no bbox"):
        checked_results([GOOD], TRUTH, "bbox")
    with pytest.raises(BadRecordError, match="record 0: 'bbox'"):
        checked_results([{**GOOD, "bbox": [1, 2, float("nan"), 3]}], TRUTH, "bbox")
