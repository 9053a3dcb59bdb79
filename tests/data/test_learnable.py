"""Ground truth that trains without an error and teaches nothing is found before the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data.learnable import Finding, check_label_maps, check_objects, check_segments
from mask2former.structures.panoptic_ids import id_to_rgb

SQUARE = [10.0, 12.0, 30.0, 12.0, 30.0, 32.0, 10.0, 32.0]


def record(*segmentations: Any, **more: Any) -> dict[str, Any]:
    objects = [{"segmentation": one, "iscrowd": 0, "category_id": 0} | more for one in segmentations]
    return {"file_name": "a.png", "height": 60, "width": 80, "annotations": objects}


def moved(add: float = 0.0, scale: float = 1.0) -> list[list[float]]:
    return [[value * scale + add for value in SQUARE]]


def rle(counts: Any) -> dict[str, Any]:
    return {"size": [60, 80], "counts": counts}


NOTHING = {
    "normalized": (moved(scale=1 / 80), "normalized polygons; multiply x by the width"),
    "right": (moved(100), "lie outside of their image"),
    "left": (moved(-100), "lie outside of their image"),
    "line": ([[5.2, 7.2, 5.3, 7.2, 5.3, 7.3]], "cover no pixel"),
    "list": (rle([4800]), "cover no pixel"),
    "compressed": (rle("P\\4"), "cover no pixel"),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_objects_that_paint_no_pixel(kind: str) -> None:
    segmentation, reason = NOTHING[kind]
    finding = check_objects([record(segmentation, segmentation), record()])
    assert finding.error.startswith("none of the 2 objects in 2 images can be learned: 2 ") and reason in finding.error
    finding = check_objects([record(segmentation), record([SQUARE]), record(segmentation, [SQUARE])])
    assert not finding.error and finding.warning.startswith("2 of 4 objects") and reason in finding.warning
    assert "1 of 3 images have no other: a.png" in finding.warning


def test_crowds() -> None:
    finding = check_objects([record([SQUARE], iscrowd=1)])
    assert '1 are crowd regions ("iscrowd": 1)' in finding.error
    some = [record([SQUARE], [SQUARE])] * 20
    assert check_objects([*some, record([SQUARE], iscrowd=1)]) == Finding()  # as in COCO
    assert "crowd" in check_objects([*some, *[record([SQUARE], iscrowd=1)] * 5]).warning


def test_nothing_to_say_of_good_data() -> None:
    corner = [0, 0, 1, 0, 1, 1, 0, 1]  # one pixel
    partly = [*(value - 15 for value in SQUARE)]
    inside = rle([10, 5, 4785])
    assert check_objects([record([SQUARE], [corner], [partly], inside, [SQUARE, moved(900)[0]]), record()]) == Finding()
    assert check_objects([record(np.ones((60, 80), bool)), record(None)]) == Finding()  # for the mapper
    assert check_objects([]) == Finding() == check_objects([{"file_name": "a.png"}])
    small = {**record([[0, 0, 1.05, 0, 1.05, 1.05, 0, 1.05]]), "height": 2, "width": 2}
    assert not check_objects([small]).error


def test_malformed_polygons_are_left_to_the_mapper() -> None:
    for bad in ([[1, 2, 3]], [["a"] * 6], [[1, 2], [3, 4], [5, 6]], [[None] * 6], [[float("nan")] * 6], ["abc"]):
        assert not check_objects([record(bad)]).error


def test_images_without_objects() -> None:
    assert check_objects([record(), record()]).error == "none of the 2 images has an object"


def test_tracks_of_videos() -> None:
    video = {**record(), "file_names": ["a.png", "b.png"]}
    tracks = [{"segmentations": [None, None], "iscrowd": 0}, {"segmentations": [None, moved(200)], "iscrowd": 0}]
    finding = check_objects([{**video, "annotations": tracks}], "videos")
    assert "none of the 2 objects in 1 videos" in finding.error
    assert "1 have no segmentation in any frame" in finding.error and "1 lie outside" in finding.error
    seen = {"segmentations": [moved(200), [SQUARE]], "iscrowd": 0}
    assert check_objects([{**video, "annotations": [seen]}], "videos") == Finding()


def save(path: Path, array: np.ndarray) -> str:
    Image.fromarray(array).save(path)
    return str(path)


def maps(root: Path, *values: list[int]) -> list[dict[str, Any]]:
    arrays = [np.array([entry, entry], np.uint8) for entry in values]
    return [{"sem_seg_file_name": save(root / f"{number}.png", array)} for number, array in enumerate(arrays)]


def test_label_maps(tmp_path: Path) -> None:
    names = ["ground", "cell"]
    error = check_label_maps(maps(tmp_path, [0, 255], [0, 0]), names, 255).error
    assert "only the values 0 ('ground') and 255, which is ignored; 'cell' never occurs" in error
    assert "all pixels of the 2 label maps" in check_label_maps(maps(tmp_path, [255], [255]), names, 255).error
    assert check_label_maps(maps(tmp_path, *[[0, 255]] * 40, [1, 1]), names, 255) == Finding()  # beyond the sample
    assert "'cell' never occurs" in check_label_maps(maps(tmp_path, [0, 0]), names, 255).warning
    assert "name two classes" in check_label_maps(maps(tmp_path, [0, 255]), ["cell"], 255).warning
    assert check_label_maps(maps(tmp_path, [0, 1]), names, 255) == Finding()
    assert check_label_maps([{"sem_seg_file_name": "absent.png"}], names, 255) == Finding()


def test_panoptic_segments(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", id_to_rgb(np.full((4, 4), 7)))
    segment = {"id": 7, "category_id": 0, "iscrowd": 0}
    entry = {"pan_seg_file_name": file, "segments_info": [segment]}
    assert check_segments([entry, {**entry, "segments_info": []}]) == Finding()
    assert "crowd regions" in check_segments([{**entry, "segments_info": [{**segment, "iscrowd": 1}]}]).error
    assert "'segments_info' is empty" in check_segments([{**entry, "segments_info": []}]).error
    assert "ids of 'segments_info'" in check_segments([{**entry, "segments_info": [{**segment, "id": 8}]}]).error
