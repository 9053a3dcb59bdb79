from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from mask2former.data.datasets.categories import class_table, index_by_id

Run = Callable[..., int]
NAME = "aachen_000000_000019"

# 3 out of roi, 7 road, 24 group of persons, 24001 a person, 26000 a car (numbers begin at 0), 23 sky, 29 caravan
IDS = np.array([[3, 7, 7, 24], [24001, 26000, 23, 29], [29001, 7, 23, 23]], np.uint16)


@pytest.fixture
def fine(tmp_path: Path, save: Callable) -> Path:
    for split in ("train", "val", "test"):
        save(tmp_path / f"cityscapes/gtFine/{split}/aachen/{NAME}_gtFine_instanceIds.png", IDS)
        image = np.zeros((3, 4, 3), np.uint8)
        save(tmp_path / f"cityscapes/leftImg8bit/{split}/aachen/{NAME}_leftImg8bit.png", image)
    return tmp_path / "cityscapes/gtFine"


def test_by_hand(fine: Path, registered: Path, prepare: Run, pixels: Callable, document: Callable) -> None:
    assert prepare("prepare_cityscapes") == 0
    labels = pixels(fine / f"test/aachen/{NAME}_gtFine_labelTrainIds.png")
    assert labels.tolist() == [[255, 0, 0, 11], [11, 13, 10, 255], [255, 0, 10, 10]]
    image = pixels(fine / f"cityscapes_panoptic_val/{NAME}_gtFine_panoptic.png").astype(int)
    assert (image @ (1, 256, 65536)).tolist() == [[0, 7, 7, 24], [24001, 26000, 23, 0], [0, 7, 23, 23]]
    content = document(fine / "cityscapes_panoptic_val.json")
    assert content["annotations"] == [
        {
            "image_id": NAME,
            "file_name": f"{NAME}_gtFine_panoptic.png",
            "segments_info": [
                {"id": 7, "category_id": 7, "area": 3, "bbox": [1, 0, 2, 3], "iscrowd": 0},
                {"id": 23, "category_id": 23, "area": 3, "bbox": [2, 1, 2, 2], "iscrowd": 0},
                {"id": 24, "category_id": 24, "area": 1, "bbox": [3, 0, 1, 1], "iscrowd": 1},
                {"id": 24001, "category_id": 24, "area": 1, "bbox": [0, 1, 1, 1], "iscrowd": 0},
                {"id": 26000, "category_id": 26, "area": 1, "bbox": [1, 1, 1, 1], "iscrowd": 0},
            ],
        }
    ]
    assert not (fine / "cityscapes_panoptic_test.json").exists()
    for name in ("sem_seg_val", "panoptic_val", "panoptic_train"):
        (record,) = DatasetCatalog.get(f"cityscapes_fine_{name}")
        assert Path(record["sem_seg_file_name"]).is_file()


def test_equals_cityscapesscripts(
    fine: Path, prepare: Run, save: Callable, pixels: Callable, document: Callable
) -> None:
    official = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    from cityscapesscripts.helpers.labels import id2label

    rng = np.random.default_rng(0)
    known = [label for label in id2label if label >= 0]
    bare = rng.choice(known, (40, 60))
    objects = np.isin(bare, [24, 25, 26, 27, 28, 31, 32, 33]) & (rng.random(bare.shape) < 0.7)
    ids = np.where(objects, bare * 1000 + rng.integers(0, 3, bare.shape), bare).astype(np.uint16)
    source = save(fine / f"val/bonn/{NAME.replace('aachen', 'bonn')}_gtFine_instanceIds.png", ids)
    assert prepare("prepare_cityscapes", "--splits", "val") == 0
    ours = document(fine / "cityscapes_panoptic_val.json")

    other = fine.parent / "official"
    other.mkdir()
    official.convert2panoptic(str(fine), str(other), setNames=["val"])
    theirs = document(other / "cityscapes_panoptic_val.json")
    for category in theirs["categories"]:
        del category["supercategory"]
    assert ours == theirs
    for annotation in theirs["annotations"]:
        name = f"cityscapes_panoptic_val/{annotation['file_name']}"
        assert np.array_equal(pixels(fine / name), pixels(other / name))
    expected = np.array([id2label[int(k)].trainId for k in bare.ravel()]).reshape(bare.shape)
    expected[expected < 0] = 255
    labels = pixels(source.with_name(source.name.replace("instanceIds", "labelTrainIds")))
    assert np.array_equal(labels, expected)


def test_polygons_drawn_by_cityscapesscripts_agree(
    fine: Path, prepare: Run, save: Callable, pixels: Callable, tmp_path: Path
) -> None:
    """labelTrainIds are officially drawn from polygons; ours come from instanceIds, drawn from the same polygons."""
    to_labels = pytest.importorskip("cityscapesscripts.preparation.json2labelImg").json2labelImg
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage

    shapes = [
        ("road", [[0, 20], [50, 20], [50, 39], [0, 39]]),
        ("cargroup", [[5, 18], [20, 18], [20, 30], [5, 30]]),
        ("car", [[18, 15], [30, 15], [30, 28], [18, 28]]),
        ("license plate", [[20, 25], [24, 25], [24, 27], [20, 27]]),
        ("person", [[33, 10], [38, 10], [38, 30], [33, 30]]),
        ("out of roi", [[0, 35], [50, 35], [50, 39], [0, 39]]),
    ]
    polygons = {
        "imgHeight": 40,
        "imgWidth": 51,
        "objects": [{"label": label, "polygon": polygon} for label, polygon in shapes],
    }
    (tmp_path / "polygons.json").write_text(json.dumps(polygons))
    source = fine / f"val/aachen/{NAME}_gtFine_instanceIds.png"
    annotation = Annotation()
    annotation.fromJsonFile(str(tmp_path / "polygons.json"))
    save(source, np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16))
    to_labels(str(tmp_path / "polygons.json"), str(tmp_path / "labels.png"), "trainIds")
    assert prepare("prepare_cityscapes", "--splits", "val") == 0
    ours = pixels(source.with_name(source.name.replace("instanceIds", "labelTrainIds")))
    assert np.array_equal(ours, pixels(tmp_path / "labels.png")) and {0, 11, 13, 255} == set(np.unique(ours).tolist())


def test_panoptic_map_of_many_segments(
    tmp_path: Path, prepare: Run, save: Callable, pixels: Callable, document: Callable
) -> None:
    """The ids of a panoptic PNG are those of its instanceIds; a class id without number is stuff, or a crowd."""
    kinds = {7: (0, 0), 23: (10, 0), 24: (11, 1), 24001: (11, 0), 24255: (11, 0), 26000: (13, 0), 33001: (18, 0)}
    ids = np.random.default_rng(0).choice([*kinds, 256], (21, 34)).astype(np.uint16)  # 256 is no class: void
    fine = tmp_path / "cityscapes/gtFine"
    save(fine / f"val/aachen/{NAME}_gtFine_instanceIds.png", ids)
    assert prepare("prepare_cityscapes", "--splits", "val") == 0
    (annotation,) = document(fine / "cityscapes_panoptic_val.json")["annotations"]
    assert annotation["image_id"] == NAME
    kept = np.where(ids == 256, 0, ids)
    expected = np.stack([kept & 255, kept >> 8, np.zeros_like(kept)], axis=-1)
    assert np.array_equal(pixels(fine / "cityscapes_panoptic_val" / annotation["file_name"]), expected)
    index = index_by_id(class_table("cityscapes"))
    found = {s["id"]: (index[s["category_id"]], s["iscrowd"], s["area"]) for s in annotation["segments_info"]}
    assert found == {number: (*kind, int((ids == number).sum())) for number, kind in kinds.items()}


# Rows of instanceIds, and their label maps: 3 out of roi, 1024 no class, 12 wall, 24 person, 27 truck, 31 train.
ROWS = {
    "train/zurich/zurich_000002_000045": ([3, 3, 24001, 3, 3], [255, 255, 11, 255, 255]),
    "val/zurich/zurich_000001_000019": ([3, 1024, 1024, 3, 3], [255] * 5),
    "test/bonn/bonn_000001_000031": ([3, 3, 27001, 27002, 27002], [255, 255, 14, 14, 14]),
    "test/bonn/bonn_000001_000032": ([31001, 31001, 12, 3, 3], [16, 16, 3, 255, 255]),
}


def test_label_maps_of_all_splits(
    tmp_path: Path, registered: Path, prepare: Run, save: Callable, pixels: Callable
) -> None:
    """Existing label maps are recreated, and all names of the dataset find all files."""
    base = tmp_path / "cityscapes"
    for name, (ids, _) in ROWS.items():
        save(base / f"leftImg8bit/{name}_leftImg8bit.png", np.zeros((1, 5, 3), np.uint8))
        save(base / f"gtFine/{name}_gtFine_instanceIds.png", np.array([ids], np.uint16))
        save(base / f"gtFine/{name}_gtFine_labelTrainIds.png", np.full((1, 5), 19, np.uint8))
    assert prepare("prepare_cityscapes", "--overwrite") == 0
    for name, (_, labels) in ROWS.items():
        assert pixels(base / f"gtFine/{name}_gtFine_labelTrainIds.png").tolist() == [labels], name
    for split, count in (("train", 1), ("val", 1), ("test", 2)):
        semantic = DatasetCatalog.get(f"cityscapes_fine_sem_seg_{split}")
        instances = DatasetCatalog.get(f"cityscapes_fine_instance_seg_{split}")
        assert len(semantic) == len(instances) == count
        assert [record["file_name"] for record in semantic] == [record["file_name"] for record in instances]
        assert all(Path(record["sem_seg_file_name"]).is_file() for record in semantic)


def test_missing_directory(tmp_path: Path, prepare: Run, capsys: Any) -> None:
    (tmp_path / "cityscapes/gtFine/train").mkdir(parents=True)
    assert prepare("prepare_cityscapes") == 1
    assert "has no files */*_instanceIds.png" in capsys.readouterr().err
