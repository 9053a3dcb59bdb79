from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data import BadRecordError, dataset_root, register_all
from mask2former.data.datasets.categories import class_table
from mask2former.data.datasets.coco import coco_categories

FACTS = Path(__file__).parent / "facts"


@pytest.fixture(autouse=True)
def _default_root() -> Iterator[None]:
    yield
    register_all()


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """Two images in the layout of COCO panoptic val2017, with semantic maps."""
    coco = tmp_path / "coco"
    for directory in ("val2017", "panoptic_val2017", "panoptic_semseg_val2017", "annotations"):
        (coco / directory).mkdir(parents=True)
    annotations, images = [], []
    for number in (1, 2):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(coco / "val2017" / f"{number}.jpg")
        for directory in ("panoptic_val2017", "panoptic_semseg_val2017"):
            Image.fromarray(np.full((4, 6, 3), 3, np.uint8)).save(coco / directory / f"{number}.png")
        segments = [{"id": 7, "category_id": 90, "area": 1}, {"id": 9, "category_id": 92, "iscrowd": 0}]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 4, "width": 6})
    content = {"images": images, "annotations": annotations}
    (coco / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return tmp_path


def test_class_table() -> None:
    categories = coco_categories()
    assert len(categories) == 133 and sum(entry["isthing"] for entry in categories) == 80
    assert [entry["name"] for entry in categories[79:81]] == ["toothbrush", "banner"]
    assert categories[79]["id"] == 90 and categories[132]["id"] == 200


def test_registering_moves_names_and_repeats_harmlessly(tmp_path: Path) -> None:
    names = set(DatasetCatalog.keys())
    register_all(tmp_path / "first")
    first = MetadataCatalog.get("coco_2017_train")
    register_all(tmp_path / "first")
    assert MetadataCatalog.get("coco_2017_train") is first
    register_all(str(tmp_path / "second"))
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert metadata.sem_seg_root == str(tmp_path / "second/coco/panoptic_semseg_val2017")
    assert MetadataCatalog.get("coco_2017_train").json_file.startswith(str(tmp_path / "second"))
    assert dataset_root() == str(tmp_path / "second")
    assert set(DatasetCatalog.keys()) == names


def test_panoptic_names_have_eighty_things() -> None:
    for name in ("coco_2017_train_panoptic", "coco_2017_val_panoptic", "coco_2017_val_panoptic_with_sem_seg"):
        metadata = MetadataCatalog.get(name)
        assert len(metadata.thing_classes) == len(metadata.thing_colors) == 80
        assert len(metadata.stuff_classes) == 133
        assert (metadata.evaluator_type, metadata.label_divisor, metadata.ignore_label) == (
            "coco_panoptic_seg",
            1000,
            255,
        )
    assert len(MetadataCatalog.get("coco_2017_val_panoptic").stuff_dataset_id_to_contiguous_id) == 53
    assert len(metadata.stuff_dataset_id_to_contiguous_id) == 133


def _metadata(name: str) -> dict[str, Any]:
    """As JSON has it: keys of id maps are text."""
    return json.loads(json.dumps(MetadataCatalog.get(name).as_dict()))


def test_all_metadata_is_that_of_the_reference() -> None:
    expected: dict[str, str] = json.loads((FACTS / "dataset_metadata.json").read_text())
    register_all("ROOT")
    assert len(expected) == 48
    digests = {
        name: hashlib.sha256(json.dumps(_metadata(name), sort_keys=True).encode()).hexdigest()[:16] for name in expected
    }
    assert digests == expected
    assert all(name in DatasetCatalog for name in expected)


def test_instance_classes_of_ade20k_are_those_of_the_challenge() -> None:
    """Rows of its two tables: class of the 100, of the 150 and of the full dataset, and name."""
    rows = json.loads((FACTS / "ade20k_instances.json").read_text())
    table = {entry["instance_id"]: entry for entry in class_table("ade20k_instance")}
    assert len(table) == 100 and {row[0] for row in rows} == set(table)
    for instance, scene, full, name in rows:
        entry = table[instance]
        assert (entry["id"], entry["name"]) == (scene - 1, name)
        assert full in entry["full_ids"] and class_table("ade20k")[entry["id"]]["isthing"]


def test_every_missing_dataset_shows_its_layout(tmp_path: Path) -> None:
    register_all(tmp_path)
    ours = ("ade20k_", "cityscapes_", "coco_", "mapillary_", "lvis_", "ytvis_", "ovis_")
    names = [name for name in DatasetCatalog if name.startswith(ours)]
    # Instances and v2.0 of Mapillary Vistas, LVIS, OVIS, polygons of Cityscapes.
    assert len(names) == 48 + 2 + 6 + 10 + 3 + 3
    for name in names:
        with pytest.raises(FileNotFoundError, match=rf"(?s)'{name}'.*does not exist.*<root>/.*DETECTRON2_DATASETS"):
            DatasetCatalog.get(name)


def test_names_follow_the_root(tmp_path: Path) -> None:
    register_all(tmp_path)
    for name in (*json.loads((FACTS / "dataset_metadata.json").read_text()), "lvis_v1_val"):
        paths = [value for value in _metadata(name).values() if isinstance(value, str) and "/" in value]
        assert paths and all(path.startswith(str(tmp_path)) for path in paths), name


def test_useless_boxes_and_areas_of_segments_are_left_out(coco_root: Path) -> None:
    register_all(coco_root)
    file = coco_root / "coco/annotations/panoptic_val2017.json"
    content = json.loads(file.read_text())
    first, second = content["annotations"][-1]["segments_info"]
    first.update(bbox=[0, 0, float("inf"), 1], area=-1)
    second.update(bbox=[0, 0, 2, 1], area=2)
    file.write_text(json.dumps(content))
    records = DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    segments = [record["segments_info"] for record in records if len(record["segments_info"]) == 2][-1]
    assert [sorted(segment.keys() & {"bbox", "area"}) for segment in segments] == [[], ["area", "bbox"]]


def test_panoptic_records(coco_root: Path) -> None:
    register_all(coco_root)
    record = DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")[1]
    coco = str(coco_root / "coco")
    assert record == {
        "file_name": f"{coco}/val2017/2.jpg",
        "image_id": 2,
        "pan_seg_file_name": f"{coco}/panoptic_val2017/2.png",
        "sem_seg_file_name": f"{coco}/panoptic_semseg_val2017/2.png",
        "height": 4,
        "width": 6,
        "segments_info": [
            {"id": 7, "category_id": 79, "isthing": True, "iscrowd": 0, "area": 1},
            {"id": 9, "category_id": 80, "isthing": False, "iscrowd": 0},
        ],
    }
    assert "sem_seg_file_name" not in DatasetCatalog.get("coco_2017_val_panoptic")[0]


def test_missing_files_show_the_layout(coco_root: Path) -> None:
    register_all(coco_root)
    for name in ("coco_2017_train", "coco_2017_train_panoptic", "coco_2017_val_panoptic_separated"):
        with pytest.raises(FileNotFoundError, match=r"(?s)does not exist.*annotations/.*DETECTRON2_DATASETS"):
            DatasetCatalog.get(name)
    (coco_root / "coco/panoptic_semseg_val2017/1.png").unlink()
    assert len(DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")) == 2  # one file is the mapper's concern
    (coco_root / "coco/panoptic_semseg_val2017/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"panoptic_semseg_val2017/1\.png"):
        DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 1, "category_id": 999}]}, "999"),
        ({"image_id": 1, "file_name": "1.png"}, "segments_info"),
        ({"image_id": "x", "file_name": "1.png", "segments_info": []}, "malformed"),
        (5, "malformed"),
    ],
)
def test_malformed_panoptic_json(coco_root: Path, annotation: Any, message: str) -> None:
    path = coco_root / "coco/annotations/panoptic_val2017.json"
    path.write_text(json.dumps({"annotations": [annotation]}))
    register_all(coco_root)
    with pytest.raises(BadRecordError, match=rf"panoptic_val2017\.json: annotations\[0\]: .*{message}"):
        DatasetCatalog.get("coco_2017_val_panoptic")


@pytest.mark.slow
def test_import_registers_below_the_environments_root(tmp_path: Path) -> None:
    code = (
        "import mask2former.data; from detectron2.data import MetadataCatalog; "
        "print(MetadataCatalog.get('coco_2017_val_panoptic_with_sem_seg').image_root)"
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": "/nowhere/at/all"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "/nowhere/at/all/coco/val2017", done.stderr
