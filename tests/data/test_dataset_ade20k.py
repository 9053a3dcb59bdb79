from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_sem_seg
from PIL import Image

from mask2former.data import BadRecordError, register_all
from mask2former.data.image_io import read_label_map


@pytest.fixture(autouse=True)
def _default_root() -> Iterator[None]:
    yield
    register_all()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three validation images of SceneParse150 in the layout that the preparation scripts leave."""
    base = tmp_path / "ADEChallengeData2016"
    names = [f"ADE_val_0000000{number}" for number in (1, 2, 3)]
    for directory in ("images", "annotations_detectron2"):
        (base / directory / "validation").mkdir(parents=True)
    (base / "ade20k_panoptic_val").mkdir()
    segments = [{"id": 7, "category_id": 7, "iscrowd": 0, "area": 10}, {"id": 300, "category_id": 0, "iscrowd": 0}]
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    for name in names:
        Image.new("RGB", (6, 4)).save(base / "images/validation" / f"{name}.jpg")
        Image.new("L", (6, 4), 7).save(base / "annotations_detectron2/validation" / f"{name}.png")
        Image.new("RGB", (6, 4), (7, 0, 0)).save(base / "ade20k_panoptic_val" / f"{name}.png")
    images = [{"id": name, "file_name": f"{name}.jpg", "height": 4, "width": 6} for name in names]
    panoptic = [{"image_id": name, "file_name": f"{name}.png", "segments_info": segments} for name in names]
    objects = [
        {"id": 1, "image_id": names[1], "category_id": 12, "iscrowd": 0, "bbox": [1, 1, 3, 2], "segmentation": square},
        {"id": 2, "image_id": names[1], "category_id": 149, "iscrowd": 0, "bbox": [1, 1, 3, 2], "segmentation": square},
    ]
    categories = [{"id": 12, "name": "person"}, {"id": 149, "name": "flag"}]
    (base / "ade20k_panoptic_val.json").write_text(json.dumps({"images": images, "annotations": panoptic}))
    content = {"images": images, "annotations": objects, "categories": categories}
    (base / "ade20k_instance_val.json").write_text(json.dumps(content))
    register_all(tmp_path)
    return base


def test_semantic_records_are_detectron2s(root: Path) -> None:
    (root / "images/validation/ADE_val_00000009.jpg").write_bytes(b"")  # without label map
    directories = str(root / "annotations_detectron2/validation"), str(root / "images/validation")
    assert DatasetCatalog.get("ade20k_sem_seg_val") == load_sem_seg(*directories)
    assert len(load_sem_seg(*directories)) == 3


def test_panoptic_records(root: Path) -> None:
    record = DatasetCatalog.get("ade20k_panoptic_val")[2]
    assert record["image_id"] == "ADE_val_00000003" and (record["height"], record["width"]) == (4, 6)
    assert record["file_name"] == str(root / "images/validation/ADE_val_00000003.jpg")
    assert record["pan_seg_file_name"] == str(root / "ade20k_panoptic_val/ADE_val_00000003.png")
    assert record["sem_seg_file_name"] == str(root / "annotations_detectron2/validation/ADE_val_00000003.png")
    segments = [(s["id"], s["category_id"], s["isthing"]) for s in record["segments_info"]]
    assert segments == [(7, 7, True), (300, 0, False)]


def test_instances_keep_file_names_as_image_ids(root: Path) -> None:
    records = DatasetCatalog.get("ade20k_instance_val")
    assert [record["image_id"] for record in records] == [f"ADE_val_0000000{number}" for number in (1, 2, 3)]
    assert [len(record["annotations"]) for record in records] == [0, 2, 0]
    # Two of the hundred classes in the file: they keep their index.
    names = MetadataCatalog.get("ade20k_instance_val").thing_classes
    assert [names[annotation["category_id"]] for annotation in records[1]["annotations"]] == ["person", "flag"]
    assert len(names) == 100 and records[1]["annotations"][1]["category_id"] == 99


def test_instances_of_other_categories_are_refused(root: Path) -> None:
    path = root / "ade20k_instance_val.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 0, "name": "wall"})
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(BadRecordError, match=r"_val\.json: image ADE_val_00000002: category 0 is not one"):
        DatasetCatalog.get("ade20k_instance_val")
    path.write_text(json.dumps({"images": [{}], "annotations": []}))
    with pytest.raises(BadRecordError, match="is not in COCO's instance format"):
        DatasetCatalog.get("ade20k_instance_val")


def test_full_set_has_sixteen_bits(tmp_path: Path) -> None:
    base = tmp_path / "ADE20K_2021_17_01"
    for directory in ("images_detectron2", "annotations_detectron2"):
        (base / directory / "training").mkdir(parents=True)
    labels = np.array([[0, 846, 65535], [300, 1, 65535]], np.uint16)
    Image.fromarray(labels).save(base / "annotations_detectron2/training/a.tif", compression="tiff_adobe_deflate")
    Image.new("RGB", (3, 2)).save(base / "images_detectron2/training/a.jpg")
    register_all(tmp_path)
    record = DatasetCatalog.get("ade20k_full_sem_seg_train")[0]
    assert record["file_name"].endswith("images_detectron2/training/a.jpg")
    values = read_label_map(record["sem_seg_file_name"])
    assert values.dtype == np.int32 and (values == labels).all()
    metadata = MetadataCatalog.get("ade20k_full_sem_seg_train")
    assert metadata.ignore_label == 65535 and len(metadata.stuff_classes) == 847
