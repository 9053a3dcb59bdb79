from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data import BadRecordError, register_all
from mask2former.structures.classes import ClassTable

LABELS = ("animal--bird", "construction--flat--road", "object--vehicle--car", "void--unlabeled")


@pytest.fixture(autouse=True)
def _default_root() -> Iterator[None]:
    yield
    register_all()


def _save(path: Path, mode: str, color: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (5, 4), color).save(path)


def _annotations(category: int) -> dict[str, Any]:
    segments = [{"id": 7, "category_id": category, "area": 20, "bbox": [0, 0, 5, 4], "iscrowd": 0}]
    return {
        "annotations": [{"image_id": "x-Y_1", "file_name": "x-Y_1.png", "segments_info": segments}],
        "images": [{"id": "x-Y_1", "file_name": "x-Y_1.jpg", "height": 4, "width": 5}],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One training image of v1.2 and v2.0, side by side as in the archives."""
    directory = tmp_path / "mapillary_vistas/training"
    _save(directory / "images/x-Y_1.jpg", "RGB", 0)
    for version in ("", "v2.0/"):
        _save(directory / f"{version}labels/x-Y_1.png", "L", 1)
        _save(directory / f"{version}panoptic/x-Y_1.png", "RGB", (7, 0, 0))
    (directory / "panoptic/panoptic_2018.json").write_text(json.dumps(_annotations(56)))
    categories = [
        {"id": 1, "name": LABELS[0], "isthing": 1},
        {"id": 20, "name": LABELS[2], "isthing": 1},
        {"id": 9, "name": LABELS[1], "isthing": 0},
    ]
    content = {**_annotations(20), "categories": categories}
    (directory / "v2.0/panoptic/panoptic_2020.json").write_text(json.dumps(content))
    labels = [{"name": name, "readable": name[-4:].title(), "color": [k, 2, 3]} for k, name in enumerate(LABELS)]
    (tmp_path / "mapillary_vistas/config_v2.0.json").write_text(json.dumps({"labels": labels}))
    square = {"id": 1, "image_id": "x-Y_1", "iscrowd": 0, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2]]}
    for version, category in (("", 56), ("_v2", 20)):
        content = {**_annotations(56), "categories": [{"id": category, "name": "Car"}]}
        content["annotations"] = [{**square, "category_id": category}]
        path = tmp_path / f"mapillary_vistas/mapillary_vistas{version}_instance_train.json"
        path.write_text(json.dumps(content))
    register_all(tmp_path)
    return tmp_path / "mapillary_vistas"


def test_panoptic_records(root: Path) -> None:
    (record,) = DatasetCatalog.get("mapillary_vistas_panoptic_train")
    directory = root / "training"
    assert record["image_id"] == "x-Y_1" and (record["height"], record["width"]) == (4, 5)
    assert record["file_name"] == str(directory / "images/x-Y_1.jpg")
    assert record["pan_seg_file_name"] == str(directory / "panoptic/x-Y_1.png")
    assert record["sem_seg_file_name"] == str(directory / "labels/x-Y_1.png")
    (segment,) = record["segments_info"]
    names = MetadataCatalog.get("mapillary_vistas_panoptic_train").stuff_classes
    assert names[segment["category_id"]] == "Car" and segment["isthing"] is True


def test_semantic_records(root: Path) -> None:
    directory = root / "training"
    assert DatasetCatalog.get("mapillary_vistas_sem_seg_train") == [
        {"file_name": str(directory / "images/x-Y_1.jpg"), "sem_seg_file_name": str(directory / "labels/x-Y_1.png")}
    ]


def test_instances_have_the_thing_classes(root: Path) -> None:
    metadata = MetadataCatalog.get("mapillary_vistas_instance_train")
    assert len(metadata.thing_classes) == len(metadata.thing_colors) == 37 and metadata.evaluator_type == "coco"
    panoptic = MetadataCatalog.get("mapillary_vistas_panoptic_train")
    for key, index in panoptic.thing_dataset_id_to_contiguous_id.items():
        own = metadata.thing_dataset_id_to_contiguous_id[key]
        assert metadata.thing_classes[own] == panoptic.thing_classes[index]
    assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == list(range(37))
    (record,) = DatasetCatalog.get("mapillary_vistas_instance_train")
    assert [metadata.thing_classes[entry["category_id"]] for entry in record["annotations"]] == ["Car"]
    with pytest.raises(FileNotFoundError, match=r"(?s)mapillary_vistas_instance_val\.json.*prepare_mapillary\.py"):
        DatasetCatalog.get("mapillary_vistas_instance_val")


def test_classes_of_v2_come_from_its_own_files(root: Path) -> None:
    semantic = MetadataCatalog.get("mapillary_vistas_v2_sem_seg_train")
    assert semantic.stuff_classes == ["Bird", "Road", "-Car", "Eled"] and semantic.stuff_colors[2] == [2, 2, 3]
    assert semantic.ignore_label == 3  # unlabeled stays in the list but is neither learned nor counted
    panoptic = MetadataCatalog.get("mapillary_vistas_v2_panoptic_train").as_dict()
    assert panoptic["thing_dataset_id_to_contiguous_id"] == {1: 0, 20: 2}
    assert panoptic["stuff_dataset_id_to_contiguous_id"] == {1: 0, 9: 1, 20: 2}
    assert panoptic["thing_classes"] == panoptic["stuff_classes"] == semantic.stuff_classes
    assert panoptic["evaluator_type"] == "mapillary_vistas_panoptic_seg" and "_pending" not in panoptic
    table = ClassTable.from_metadata(panoptic, 4)
    assert table is not None and table.is_thing == (True, False, True, False)
    instances = MetadataCatalog.get("mapillary_vistas_v2_instance_train")
    assert instances.thing_classes == ["Bird", "-Car"]
    assert instances.thing_dataset_id_to_contiguous_id == {1: 0, 20: 1}


def test_records_of_v2(root: Path) -> None:
    (record,) = DatasetCatalog.get("mapillary_vistas_v2_panoptic_train")
    assert [(entry["category_id"], entry["isthing"]) for entry in record["segments_info"]] == [(2, True)]
    assert record["sem_seg_file_name"] == str(root / "training/v2.0/labels/x-Y_1.png")
    assert DatasetCatalog.get("mapillary_vistas_v2_sem_seg_train")[0]["file_name"] == record["file_name"]
    (record,) = DatasetCatalog.get("mapillary_vistas_v2_instance_train")
    assert [entry["category_id"] for entry in record["annotations"]] == [1]


def test_v2_without_files(tmp_path: Path) -> None:
    register_all(tmp_path)
    metadata = MetadataCatalog.get("mapillary_vistas_v2_sem_seg_val")
    assert metadata.evaluator_type == "sem_seg" and metadata.get("thing_classes") is None
    with pytest.raises(FileNotFoundError, match=r"(?s)config_v2\.0\.json does not exist.*Expected"):
        _ = metadata.stuff_classes
    assert "stuff_classes" not in metadata.as_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [{"name": "a", "color": [1, 2, 3]}]}, r"config_v2\.0\.json: labels\[0\]: needs"),
        ({"labels": [{"name": "a", "readable": "A", "color": [1]}]}, r"labels\[0\]: needs"),
        ({"labels": []}, r"panoptic_2020\.json: categories \['animal--bird'"),
    ],
)
def test_malformed_config_of_v2(root: Path, change: dict[str, Any], message: str) -> None:
    (root / "config_v2.0.json").write_text(json.dumps(change))
    with pytest.raises(BadRecordError, match=message):
        _ = MetadataCatalog.get("mapillary_vistas_v2_panoptic_train").thing_classes
