from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.datasets.categories import class_table

Run = Callable[..., int]
SCRIPT = "prepare_mapillary"

# Segment 1 bird (id 1, thing), 300 curb (id 3, stuff), 70000 person (id 20, thing), 2 a crowd of persons
IDS = np.array([[1, 1, 300], [70000, 0, 300], [2, 2, 300]])
SEGMENTS = [
    {"id": 1, "category_id": 1, "area": 2, "bbox": [], "iscrowd": 0},
    {"id": 300, "category_id": 3, "area": 3, "bbox": [], "iscrowd": 0},
    {"id": 70000, "category_id": 20, "area": 1, "bbox": [], "iscrowd": 0},
    {"id": 2, "category_id": 20, "area": 2, "bbox": [], "iscrowd": 1},
    {"id": 4, "category_id": 20, "area": 0, "bbox": [], "iscrowd": 0},  # no pixel is left of it
]


def make_v1(directory: Path, save: Callable, segments: list[dict[str, Any]] = SEGMENTS) -> None:
    """panoptic and labels of v1.2 with one image, a."""
    save(directory / "labels/a.png", np.zeros((3, 3), np.uint8))
    save(directory / "panoptic/a.png", np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], axis=-1).astype(np.uint8))
    categories = [{**entry, "name": f"raw--{entry['name']}"} for entry in class_table("mapillary_vistas")]
    annotation = {"image_id": "a", "file_name": "a.png", "segments_info": segments}
    images = [{"id": "a", "file_name": "a.jpg", "height": 3, "width": 3}]
    content = {"images": images, "annotations": [annotation], "categories": categories}
    save(directory / "panoptic/panoptic_2018.json", content)


@pytest.fixture
def base(tmp_path: Path, save: Callable) -> Path:
    base = tmp_path / "mapillary_vistas"
    for split in ("training", "validation"):
        save(base / split / "images/a.jpg", np.zeros((3, 3, 3), np.uint8))
        make_v1(base / split, save)
    return base


def test_instances(base: Path, registered: Path, prepare: Run, document: Callable, capsys: Any) -> None:
    assert prepare(SCRIPT) == 0
    content = document(base / "mapillary_vistas_instance_val.json")
    assert content["images"] == [{"id": "a", "file_name": "a.jpg", "width": 3, "height": 3}]
    assert len(content["categories"]) == 37
    assert content["categories"][:2] == [{"id": 1, "name": "Bird"}, {"id": 2, "name": "Ground Animal"}]
    masks = [coco_mask.decode(annotation.pop("segmentation")) for annotation in content["annotations"]]
    assert [np.argwhere(mask).tolist() for mask in masks] == [[[0, 0], [0, 1]], [[2, 0], [2, 1]], [[1, 0]]]
    rows = [(1, 0, 2, [0, 0, 2, 1]), (20, 1, 2, [0, 2, 2, 1]), (20, 0, 1, [0, 1, 1, 1])]
    assert content["annotations"] == [
        {"id": number, "image_id": "a", "category_id": category, "iscrowd": crowd, "area": area, "bbox": box}
        for number, (category, crowd, area, box) in enumerate(rows, 1)
    ]
    (record,) = DatasetCatalog.get("mapillary_vistas_instance_val")
    things = [entry["id"] for entry in class_table("mapillary_vistas") if entry["isthing"]]
    assert [things[a["category_id"]] for a in record["annotations"]] == [1, 20, 20]
    assert "v1.2 val: 0 written, 1 already there, 0 repaired, 0 failed" in capsys.readouterr().out
    assert prepare(SCRIPT) == 0
    assert "mapillary_vistas_instance_val: 0 written, 1 already there" in capsys.readouterr().out


def test_archive_of_v2_serves_both(
    base: Path, registered: Path, prepare: Run, save: Callable, pixels: Callable
) -> None:
    for split in ("training", "validation"):
        (base / split / "v1.2").mkdir()
        for name in ("labels", "panoptic"):
            (base / split / name).rename(base / split / "v1.2" / name)
    assert prepare(SCRIPT) == 0
    link = base / "training/labels"
    assert link.is_symlink() and not Path(link.readlink()).is_absolute()
    assert pixels(link / "a.png").shape == (3, 3)
    assert (base / "mapillary_vistas_instance_train.json").is_file()
    assert len(DatasetCatalog.get("mapillary_vistas_panoptic_train")) == 1


# Segment ids of each column of an image of v2.0, 5 pixels high, and category and iscrowd of each segment.
COLUMNS_OF_V2 = {
    "training": {"2": ([1, 2, 3, 4, 5], [(1, 0), (10, 0), (1, 0), (10, 0), (1, 0)])},
    "validation": {
        "0": ([1, 1, 1, 2, 2], [(1, 1), (10, 0)]),
        "1": ([1, 1, 2, 3, 3], [(100, 0), (10, 0), (100, 1)]),
    },
}
NAMES_OF_V2 = {1: "animal--bird", 10: "construction--barrier--separator", 100: "object--vehicle--bicycle"}


def make_v2(base: Path, save: Callable) -> None:
    """Create the complete layout of v2.0, as its archive has it."""
    labels = [{"name": n, "readable": n.split("--")[-1].title(), "color": [1, 2, 3]} for n in NAMES_OF_V2.values()]
    save(base / "config_v2.0.json", {"labels": labels})
    classes = list(NAMES_OF_V2)
    for split, images in COLUMNS_OF_V2.items():
        annotations = []
        for name, (columns, kinds) in images.items():
            ids = np.array([columns] * 5)
            label_of = np.array([0, *(classes.index(category) for category, _ in kinds)], np.uint8)
            save(base / split / f"images/{name}.jpg", np.zeros((5, 5, 3), np.uint8))
            save(base / split / f"v2.0/labels/{name}.png", label_of[ids])
            save(base / split / f"v2.0/panoptic/{name}.png", np.stack([ids, ids * 0, ids * 0], -1).astype(np.uint8))
            segments = [
                {"id": number, "category_id": category, "area": 5 * columns.count(number), "bbox": [], "iscrowd": crowd}
                for number, (category, crowd) in enumerate(kinds, 1)
            ]
            annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
        content = {
            "images": [{"id": name, "file_name": f"{name}.jpg", "width": 5, "height": 5} for name in images],
            "annotations": annotations,
            "categories": [{"id": number, "name": name, "isthing": 1} for number, name in NAMES_OF_V2.items()],
        }
        save(base / split / "v2.0/panoptic/panoptic_2020.json", content)


def test_layout_of_v2(
    tmp_path: Path, registered: Path, prepare: Run, save: Callable, document: Callable, capsys: Any
) -> None:
    base = tmp_path / "mapillary_vistas"
    make_v2(base, save)
    assert prepare(SCRIPT) == 0
    assert [path.name for path in sorted(base.glob("*instance*"))] == [
        "mapillary_vistas_v2_instance_train.json",
        "mapillary_vistas_v2_instance_val.json",
    ]
    content = document(base / "mapillary_vistas_v2_instance_val.json")
    found = [(a["image_id"], a["category_id"], a["area"], a["bbox"], a["iscrowd"]) for a in content["annotations"]]
    assert found == [
        ("0", 1, 15, [0, 0, 3, 5], 1),
        ("0", 10, 10, [3, 0, 2, 5], 0),
        ("1", 100, 10, [0, 0, 2, 5], 0),
        ("1", 10, 5, [2, 0, 1, 5], 0),
        ("1", 100, 10, [3, 0, 2, 5], 1),
    ]
    assert content["categories"][2] == {"id": 100, "name": "Bicycle"}
    mask = coco_mask.decode(content["annotations"][2]["segmentation"])
    assert mask.tolist() == [[1, 1, 0, 0, 0]] * 5
    records = DatasetCatalog.get("mapillary_vistas_v2_instance_val")
    assert [[a["category_id"] for a in record["annotations"]] for record in records] == [[0, 1], [2, 1, 2]]
    assert len(DatasetCatalog.get("mapillary_vistas_v2_sem_seg_val")) == 2
    (record,) = DatasetCatalog.get("mapillary_vistas_v2_panoptic_train")
    assert [entry["category_id"] for entry in record["segments_info"]] == [0, 1, 0, 1, 0]
    assert MetadataCatalog.get("mapillary_vistas_v2_panoptic_train").thing_classes == ["Bird", "Separator", "Bicycle"]

    (base / "config_v2.0.json").unlink()
    assert prepare(SCRIPT) == 1
    assert "config_v2.0.json does not exist" in capsys.readouterr().err


def test_layout_of_v1_lacks_panoptic(tmp_path: Path, prepare: Run, save: Callable, capsys: Any) -> None:
    for split in ("training", "validation"):
        save(tmp_path / "mapillary_vistas" / split / "images/1.jpg", np.zeros((5, 5, 3), np.uint8))
        save(tmp_path / "mapillary_vistas" / split / "v1.2/labels/1.png", np.zeros((5, 5), np.uint8))
    assert prepare(SCRIPT) == 1
    shown = capsys.readouterr().err
    assert "training/panoptic does not exist" in shown and "panoptic_2018.json" in shown
    assert (tmp_path / "mapillary_vistas/training/labels").is_symlink()


def test_missing_files_are_named(base: Path, prepare: Run, save: Callable, capsys: Any) -> None:
    save(base / "validation/images/b.jpg", np.zeros((3, 3, 3), np.uint8))
    save(base / "validation/labels/c.png", np.zeros((3, 3), np.uint8))
    assert prepare(SCRIPT, "--splits", "val") == 1
    shown = capsys.readouterr().err
    assert "labels: 1 images without label map: b" in shown
    assert "labels: 1 label map without image: c" in shown
    assert "panoptic: 1 images without panoptic annotation: b" in shown


def test_undeclared_category(base: Path, prepare: Run, save: Callable, capsys: Any) -> None:
    make_v1(base / "validation", save, [{"id": 1, "category_id": 99}])
    assert prepare(SCRIPT, "--splits", "val") == 1
    assert "panoptic_2018.json: a.png: 99 is missing, or not declared in 'categories'" in capsys.readouterr().err
    assert not (base / "mapillary_vistas_instance_val.json").exists()


def test_other_classes_than_those_of_v1(
    base: Path, prepare: Run, document: Callable, save: Callable, capsys: Any
) -> None:
    path = base / "validation/panoptic/panoptic_2018.json"
    content = document(path)
    content["categories"][2]["isthing"] = 1
    save(path, content)
    assert prepare(SCRIPT, "--splits", "val") == 1
    assert "is not of v1.2: category 3, raw--Curb, differs" in capsys.readouterr().err
