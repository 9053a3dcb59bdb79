from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import DatasetCatalog

Run = Callable[..., int]

# SceneParse150 labels, 0 = void: 1 wall, 3 sky, 8 bed (a thing), 150 flag (a thing)
LABELS = np.array([[1, 1, 1, 3], [1, 8, 8, 3], [150, 0, 0, 3]], np.uint8)
# class 1 bed, 4 person, 100 flag; objects 1-3. The first bed lies over wall too, the person over sky.
CLASSES = np.array([[0, 1, 0, 0], [0, 1, 1, 4], [100, 0, 0, 0]], np.uint8)
NUMBERS = np.array([[0, 1, 0, 0], [0, 1, 2, 7], [9, 0, 0, 0]], np.uint8)
WALL, SKY, BED, PERSON, FLAG = (120, 120, 120), (6, 230, 230), (204, 5, 255), (150, 5, 61), (92, 0, 255)


def pack(color: Any) -> int:
    return int(color[0]) + 256 * int(color[1]) + 65536 * int(color[2])


@pytest.fixture
def root(tmp_path: Path, save: Callable[[Path, Any], Path]) -> Path:
    base = tmp_path / "ADEChallengeData2016"
    objects = np.stack([CLASSES, NUMBERS, np.zeros_like(CLASSES)], axis=-1)
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000002")):
        save(base / "annotations" / split / f"{name}.png", LABELS)
        save(base / "annotations_instance" / split / f"{name}.png", objects)
        save(base / "images" / split / f"{name}.jpg", np.zeros((3, 4, 3), np.uint8))
    return base


def test_semantic(root: Path, registered: Path, prepare: Run, pixels: Callable, capsys: Any) -> None:
    assert prepare("prepare_ade20k_sem_seg") == 0
    expected = [[0, 0, 0, 2], [0, 7, 7, 2], [149, 255, 255, 2]]
    for split in ("training/ADE_train_00000001", "validation/ADE_val_00000002"):
        written = pixels(root / "annotations_detectron2" / f"{split}.png")
        assert written.dtype == np.uint8 and written.tolist() == expected
    (record,) = DatasetCatalog.get("ade20k_sem_seg_val")
    assert Path(record["sem_seg_file_name"]) == root / "annotations_detectron2/validation/ADE_val_00000002.png"
    assert "ade20k_sem_seg_val: 1 written, 0 already there, 0 repaired, 0 failed" in capsys.readouterr().out


def test_semantic_goes_on(root: Path, prepare: Run, pixels: Callable, save: Callable, capsys: Any) -> None:
    save(root / "annotations/validation/ADE_val_00000003.png", np.full((2, 2), 151, np.uint8))
    assert prepare("prepare_ade20k_sem_seg", "--splits", "val") == 1
    shown = capsys.readouterr()
    assert "1 written, 0 already there, 0 repaired, 1 failed" in shown.out
    assert "ADE_val_00000003.png: label 151 is not in [0, 150]; use the annotations of SceneParse150" in shown.err

    done = root / "annotations_detectron2/validation/ADE_val_00000002.png"
    done.write_bytes(done.read_bytes()[:-20])  # truncated
    save(root / "annotations/validation/ADE_val_00000003.png", np.full((2, 2), 5, np.uint8))
    assert prepare("prepare_ade20k_sem_seg", "--splits", "val") == 0
    assert "1 written, 0 already there, 1 repaired, 0 failed" in capsys.readouterr().out
    assert pixels(done)[0].tolist() == [0, 0, 0, 2]
    assert prepare("prepare_ade20k_sem_seg", "--splits", "val") == 0
    assert "0 written, 2 already there, 0 repaired, 0 failed" in capsys.readouterr().out
    save(done, np.zeros((3, 4), np.uint8))  # complete, but of other source files
    assert prepare("prepare_ade20k_sem_seg", "--splits", "val") == 0
    assert "0 written, 1 already there, 1 repaired, 0 failed" in capsys.readouterr().out
    assert pixels(done)[0].tolist() == [0, 0, 0, 2]
    assert prepare("prepare_ade20k_sem_seg", "--splits", "val", "--overwrite") == 0
    assert "2 written, 0 already there, 0 repaired, 0 failed" in capsys.readouterr().out


def test_panoptic(root: Path, prepare: Run, pixels: Callable, document: Callable) -> None:
    assert prepare("prepare_ade20k_pan_seg") == 0
    content = document(root / "ade20k_panoptic_val.json")
    assert content["images"] == [
        {"id": "ADE_val_00000002", "file_name": "ADE_val_00000002.jpg", "width": 4, "height": 3}
    ]
    categories = {entry["id"]: entry for entry in content["categories"]}
    assert list(categories) == list(range(150)) and sum(entry["isthing"] for entry in categories.values()) == 100
    assert categories[7]["name"] == "bed" and tuple(categories[7]["color"]) == BED

    (annotation,) = content["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == ("ADE_val_00000002", "ADE_val_00000002.png")
    segments = annotation["segments_info"]
    second_bed = segments[3]["id"]
    near = np.array([second_bed & 255, second_bed >> 8 & 255, second_bed >> 16])
    assert second_bed != pack(BED) and np.abs(near - BED).max() <= 30
    # Area and box of wall and sky as they were before the things; the bed of the label map is not stuff.
    assert segments == [
        {"id": pack(WALL), "category_id": 0, "area": 4, "bbox": [0, 0, 3, 2], "iscrowd": 0},
        {"id": pack(SKY), "category_id": 2, "area": 3, "bbox": [3, 0, 1, 3], "iscrowd": 0},
        {"id": pack(BED), "category_id": 7, "area": 2, "bbox": [1, 0, 1, 2], "iscrowd": 0},
        {"id": second_bed, "category_id": 7, "area": 1, "bbox": [2, 1, 1, 1], "iscrowd": 0},
        {"id": pack(PERSON), "category_id": 12, "area": 1, "bbox": [3, 1, 1, 1], "iscrowd": 0},
        {"id": pack(FLAG), "category_id": 149, "area": 1, "bbox": [0, 2, 1, 1], "iscrowd": 0},
    ]
    void = (0, 0, 0)
    assert pixels(root / "ade20k_panoptic_val/ADE_val_00000002.png").tolist() == [
        [list(color) for color in row]
        for row in (
            (WALL, BED, WALL, SKY),
            (WALL, BED, near.tolist(), PERSON),
            (FLAG, void, void, SKY),
        )
    ]


def test_panoptic_goes_on_and_mends(
    root: Path, registered: Path, prepare: Run, pixels: Callable, save: Callable, document: Callable, capsys: Any
) -> None:
    broken = root / "annotations_instance/validation/ADE_val_00000004.png"
    save(root / "annotations/validation/ADE_val_00000004.png", LABELS[:2])
    assert prepare("prepare_ade20k_pan_seg", "--splits", "val") == 1
    assert f"{broken}: the file does not exist" in capsys.readouterr().err
    assert not list(root.glob("*.json*"))  # never half of it

    save(broken, np.zeros((3, 4, 3), np.uint8))
    assert prepare("prepare_ade20k_pan_seg", "--splits", "val") == 1
    assert "is (3, 4) pixels (height, width)" in capsys.readouterr().err
    save(broken, np.zeros((2, 4, 3), np.uint8))
    assert prepare("prepare_ade20k_pan_seg", "--splits", "val") == 0
    assert "1 written, 1 already there" in capsys.readouterr().out
    assert [path.name for path in root.glob("*.json*")] == ["ade20k_panoptic_val.json"]
    first = document(root / "ade20k_panoptic_val.json")
    assert [image["id"] for image in first["images"]] == ["ADE_val_00000002", "ADE_val_00000004"]

    assert prepare("prepare_ade20k_sem_seg", "--splits", "val") == 0
    save(root / "images/validation/ADE_val_00000004.jpg", np.zeros((2, 4, 3), np.uint8))
    records = DatasetCatalog.get("ade20k_panoptic_val")
    assert [len(record["segments_info"]) for record in records] == [6, 2]
    assert all(Path(record["pan_seg_file_name"]).is_file() for record in records)

    png = root / "ade20k_panoptic_val/ADE_val_00000002.png"
    before = pixels(png).copy()
    png.write_bytes(b"")
    assert prepare("prepare_ade20k_pan_seg", "--splits", "val") == 0
    assert "0 written, 1 already there, 1 repaired" in capsys.readouterr().out
    assert np.array_equal(pixels(png), before) and document(root / "ade20k_panoptic_val.json") == first


def test_instances(root: Path, registered: Path, prepare: Run, save: Callable, document: Callable) -> None:
    save(root / "annotations_instance/validation/ADE_val_00000003.png", np.zeros((2, 2, 3), np.uint8))
    objects = np.zeros((1, 3, 3), np.uint8)
    objects[0, 1:, :2] = 4, 1
    save(root / "annotations_instance/validation/ADE_val_00000005.png", objects)
    assert prepare("prepare_ade20k_ins_seg") == 0
    content = document(root / "ade20k_instance_val.json")
    assert content["images"] == [
        {"id": "ADE_val_00000002", "file_name": "ADE_val_00000002.jpg", "width": 4, "height": 3},
        {"id": "ADE_val_00000003", "file_name": "ADE_val_00000003.jpg", "width": 2, "height": 2},
        {"id": "ADE_val_00000005", "file_name": "ADE_val_00000005.jpg", "width": 3, "height": 1},
    ]
    assert len(content["categories"]) == 100 and content["categories"][3] == {"id": 12, "name": "person"}
    masks = [coco_mask.decode(annotation.pop("segmentation")) for annotation in content["annotations"]]
    assert [np.argwhere(mask).tolist() for mask in masks] == [
        [[0, 1], [1, 1]],
        [[1, 2]],
        [[1, 3]],
        [[2, 0]],
        [[0, 1], [0, 2]],
    ]
    first, last = "ADE_val_00000002", "ADE_val_00000005"
    rows = [
        (first, 7, 2, [1, 0, 1, 2]),
        (first, 7, 1, [2, 1, 1, 1]),
        (first, 12, 1, [3, 1, 1, 1]),
        (first, 149, 1, [0, 2, 1, 1]),
        (last, 12, 2, [1, 0, 2, 1]),
    ]
    assert content["annotations"] == [
        {"id": number, "image_id": name, "category_id": category, "iscrowd": 0, "area": area, "bbox": box}
        for number, (name, category, area, box) in enumerate(rows, 1)
    ]
    records = DatasetCatalog.get("ade20k_instance_val")
    assert [record["image_id"] for record in records] == [first, "ADE_val_00000003", last]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 0, 3, 99]


def test_instances_go_on(root: Path, prepare: Run, save: Callable, document: Callable, capsys: Any) -> None:
    objects = np.full((2, 2, 3), 101, np.uint8)
    save(root / "annotations_instance/validation/ADE_val_00000003.png", objects)
    assert prepare("prepare_ade20k_ins_seg", "--splits", "val") == 1
    assert "ADE_val_00000003.png: class 101 of object 101 is not in [1, 100]" in capsys.readouterr().err
    assert not list(root.glob("*.json*"))
    objects[:, :, 0] = 100
    save(root / "annotations_instance/validation/ADE_val_00000003.png", objects)
    assert prepare("prepare_ade20k_ins_seg", "--splits", "val") == 0
    assert "2 written, 0 already there" in capsys.readouterr().out
    content = document(root / "ade20k_instance_val.json")
    assert [annotation["category_id"] for annotation in content["annotations"]] == [7, 7, 12, 149, 149]
    assert prepare("prepare_ade20k_ins_seg", "--splits", "val") == 0
    assert "0 written, 2 already there" in capsys.readouterr().out
    assert [path.name for path in root.glob("*.json*")] == ["ade20k_instance_val.json"]


def test_panoptic_images_and_their_annotation_file_agree(
    root: Path, prepare: Run, pixels: Callable, save: Callable, document: Callable, capsys: Any
) -> None:
    """Source files change after an interrupted run; sizes and names stay."""
    broken = root / "annotations/validation/ADE_val_00000004.png"
    save(broken, np.full((2, 2), 151, np.uint8))
    assert prepare("prepare_ade20k_pan_seg", "--splits", "val") == 1
    save(root / "annotations/validation/ADE_val_00000002.png", np.full_like(LABELS, 3))
    broken.unlink()
    capsys.readouterr()
    assert prepare("prepare_ade20k_pan_seg", "--splits", "val") == 0
    assert "0 written, 0 already there, 1 repaired, 0 failed" in capsys.readouterr().out
    (annotation,) = document(root / "ade20k_panoptic_val.json")["annotations"]
    stored = {pack(color) for color in pixels(root / "ade20k_panoptic_val/ADE_val_00000002.png").reshape(-1, 3)}
    assert stored == {segment["id"] for segment in annotation["segments_info"]} and pack(WALL) not in stored


def test_two_classes_of_one_color_get_two_ids(root: Path, prepare: Run, save: Callable, document: Callable) -> None:
    """Road and another class share (140, 140, 140) in the published table."""
    from mask2former.data.datasets.categories import class_table

    same = [e["id"] + 1 for e in class_table("ade20k") if e["color"] == [140, 140, 140]]
    assert len(same) == 2
    save(root / "annotations/validation/ADE_val_00000002.png", np.array([[*same, 0, 0]] * 3, np.uint8))
    assert prepare("prepare_ade20k_pan_seg", "--splits", "val") == 0
    (annotation,) = document(root / "ade20k_panoptic_val.json")["annotations"]
    ids = [segment["id"] for segment in annotation["segments_info"]]
    assert len(set(ids)) == len(ids) and pack((140, 140, 140)) in ids


def test_missing_directory(tmp_path: Path, prepare: Run, capsys: Any) -> None:
    assert prepare("prepare_ade20k_sem_seg") == 1
    shown = capsys.readouterr().err
    assert str(tmp_path / "ADEChallengeData2016/annotations/training") in shown
    assert "DETECTRON2_DATASETS" in shown and "--root" in shown
