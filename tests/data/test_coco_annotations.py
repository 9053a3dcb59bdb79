"""The checked reader of COCO instance files: one form of all that files hold, and one error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former.data import load_coco_json
from mask2former.data.datasets.coco_annotations import read_instances
from mask2former.errors import BadRecordError

Write = Callable[[], tuple[Path, Path]]
CORNERS = [(5, 4), (14, 4), (14, 13), (5, 13), (6, 9), (5, 6)]


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@pytest.mark.parametrize("closed", [False, True])
def test_points_as_pairs_are_flat_lists(tiny_content: Any, write: Write, count: int, closed: bool) -> None:
    """Also those of three vertices and a closing one, which have four points and look like a box."""
    ring = [list(point) for point in [*CORNERS[:count], *CORNERS[: int(closed)]]]
    flat = [value for point in ring for value in point]
    annotations = tiny_content[2]["annotations"]
    for entry, form in zip(annotations, ([flat], [ring], ring, [ring, ring]), strict=False):
        entry["segmentation"] = form
    found = [entry["segmentation"] for entry in read_instances(str(write()[0])).annotations[:4]]
    assert found == [[flat], [flat], [flat], [flat, flat]]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 10, 20, 10, None, 20, 10, 20]],
        [[10, 10, 3e9, 10, 20, 20]],
        [["10", "10", "20", "10", "20", "20"]],
        ["[10 10 20 10 20 20]"],
        [[True] * 6],
        [[[[10, 10], [20, 10], [20, 20]]]],
        [[[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]]],
        [[10**400, 1, 2, 3, 4, 5]],
        [[39 * (i % 2) * (i // 2 % 2) for i in range(600_000)]],
        {"size": [32.0, 40.0], "counts": [1280]},
        {"size": [32, 40], "counts": [10**36]},
    ],
)
def test_what_pycocotools_cannot_take_is_one_error(tiny_content: Any, write: Write, segmentation: Any) -> None:
    tiny_content[2]["annotations"][0]["segmentation"] = segmentation
    path, _ = write()
    with pytest.raises(BadRecordError, match=r"instances\.json: annotation 1: "):
        read_instances(str(path))
    left = read_instances(str(path), skip_bad_records=True)
    assert left.left_out == {10} and 10 not in left.images
    assert all(entry["image_id"] != 10 for entry in left.annotations)


@pytest.mark.parametrize(("crowd", "expected"), [(None, 0), (True, 1), (False, 0), (1.0, 1), ("0", None), ([], None)])
def test_crowd_flags(tiny_content: Any, write: Write, crowd: Any, expected: int | None) -> None:
    tiny_content[2]["annotations"][0]["iscrowd"] = crowd
    path, _ = write()
    if expected is None:
        with pytest.raises(BadRecordError, match="annotation 1: 'iscrowd' must be 0 or 1"):
            read_instances(str(path))
    else:
        assert read_instances(str(path)).annotations[0]["iscrowd"] == expected


@pytest.mark.parametrize("sides", [(10**9, 40), (1 << 20, 1 << 20)])
def test_no_image_has_these_sizes(tiny_content: Any, write: Write, sides: tuple[int, int]) -> None:
    tiny_content[2]["images"][0].update(height=sides[0], width=sides[1])
    with pytest.raises(BadRecordError, match="image 10: "):
        read_instances(str(write()[0]))


def test_bad_numbers_of_boxes_and_areas(tiny_content: Any, write: Write) -> None:
    annotations = tiny_content[2]["annotations"]
    for entry, area in zip(annotations, (None, float("nan"), -1, "12 px", 10**400, True), strict=False):
        entry["area"] = area
    annotations[6]["bbox"] = None
    read = read_instances(str(write()[0])).annotations
    assert not any("area" in entry for entry in read[:6]) and read[6]["area"] == 25
    assert "bbox" not in read[6] and len(load_coco_json(str(write()[0]), "")) == 6
    annotations[0]["bbox"] = [1, 2, 3, 10**400]
    with pytest.raises(BadRecordError, match="annotation 1: 'bbox'"):
        read_instances(str(write()[0]))


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_crowd_without_a_mask_is_left_out_as_one_with_an_empty_mask(
    tiny_content: Any, write: Write, key: str
) -> None:
    entry = tiny_content[2]["annotations"][0]
    entry[key] = 1
    del entry["segmentation"]
    read = read_instances(str(write()[0]), needs=("segmentation",))
    assert entry["id"] not in [kept["id"] for kept in read.annotations] and len(read.degenerate) == 1
    entry[key] = 0
    with pytest.raises(BadRecordError, match="has no 'segmentation'"):
        read_instances(str(write()[0]), needs=("segmentation",))


def test_all_images_bad(tiny_content: Any, write: Write) -> None:
    for image in tiny_content[2]["images"]:
        image["height"] = None
    with pytest.raises(BadRecordError, match=r"all of its images have bad records, the first is .*image 10"):
        read_instances(str(write()[0]), skip_bad_records=True)


def test_ids_of_benchmarks(tiny_content: Any, write: Write) -> None:
    """ADE20K names its images; annotations of other files share ids or have none."""
    content = tiny_content[2]
    for entry in content["images"]:
        entry["id"] = f"a{entry['id']}"
        del entry["file_name"]
    for entry in content["annotations"]:
        entry["image_id"], entry["id"] = f"a{entry['image_id']}", 1
    path = str(write()[0])
    assert len(read_instances(path, benchmark=True).annotations) == len(content["annotations"])
    with pytest.raises(BadRecordError, match=r"images\[0\]: needs an integer 'id'"):
        read_instances(path)
    content["images"].append({"id": 7, "height": 4, "width": 4})
    with pytest.raises(BadRecordError, match="integers and others text"):
        read_instances(str(write()[0]), benchmark=True)
