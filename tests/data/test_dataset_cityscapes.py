from __future__ import annotations

import json
import sys
import types
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from PIL import Image

from mask2former.data import BadRecordError, SegmentationMapper, register_all
from mask2former.data.dataset_mappers import InstanceTargets

CITIES = {"aachen": ("000000_000019", "000001_000019"), "ulm": ("000002_000019",)}


def _instance_ids() -> np.ndarray:
    """Road, two cars, a rider, a crowd of people, a caravan that is not evaluated."""
    ids = np.full((8, 12), 7, np.uint16)
    ids[1:3, 1:4] = 26000
    ids[2, 2] = 7  # a hole
    ids[5:7, 1:4] = 26001
    ids[0:2, 8:10] = 25003
    ids[4:8, 8:12] = 24
    ids[3, 0] = 29001
    return ids


@pytest.fixture(autouse=True)
def _default_root() -> Iterator[None]:
    yield
    register_all()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of two cities in the layout of Cityscapes, prepared."""
    base = tmp_path / "cityscapes"
    panoptic = base / "gtFine/cityscapes_panoptic_val"
    panoptic.mkdir(parents=True)
    annotations = []
    for city, frames in CITIES.items():
        images, labels = base / "leftImg8bit/val" / city, base / "gtFine/val" / city
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for frame in frames:
            name = f"{city}_{frame}"
            Image.new("RGB", (12, 8)).save(images / f"{name}_leftImg8bit.png")
            start = str(labels / f"{name}_gtFine")
            Image.fromarray(_instance_ids()).save(f"{start}_instanceIds.png")
            Image.new("L", (12, 8)).save(f"{start}_labelTrainIds.png")
            Image.new("L", (12, 8), 7).save(f"{start}_labelIds.png")
            Path(f"{start}_polygons.json").write_text(json.dumps({"imgHeight": 8, "imgWidth": 12, "objects": []}))
            Image.new("RGB", (12, 8), (7, 0, 0)).save(panoptic / f"{name}_gtFine_panoptic.png")
            segments = [
                {"id": 7, "category_id": 7, "area": 80, "iscrowd": 0, "bbox": [0, 0, 12, 8]},
                {"id": 26000, "category_id": 26, "area": 5, "iscrowd": 0, "bbox": [1, 1, 3, 2]},
                {"id": 24, "category_id": 24, "area": 16, "iscrowd": 1, "bbox": [8, 4, 4, 4]},
            ]
            file = f"{name}_gtFine_panoptic.png"
            annotations.append({"image_id": name, "file_name": file, "segments_info": segments})
    (base / "gtFine/cityscapes_panoptic_val.json").write_text(json.dumps({"annotations": annotations}))
    register_all(tmp_path)
    return base


def test_semantic_records_are_detectron2s(root: Path) -> None:
    records = DatasetCatalog.get("cityscapes_fine_sem_seg_val")
    theirs = load_cityscapes_semantic(str(root / "leftImg8bit/val/"), str(root / "gtFine/val/"))
    theirs.sort(key=lambda record: record["file_name"])
    assert len(records) == 3
    for record, other in zip(records, theirs, strict=True):
        assert Path(record["file_name"]) == Path(other["file_name"])
        assert Path(record["sem_seg_file_name"]) == Path(other["sem_seg_file_name"])


def test_panoptic_records_are_detectron2s(root: Path) -> None:
    metadata = {
        "thing_dataset_id_to_contiguous_id": {24: 11, 26: 13},
        "stuff_dataset_id_to_contiguous_id": {7: 0},
    }
    paths = ("leftImg8bit/val", "gtFine/cityscapes_panoptic_val", "gtFine/cityscapes_panoptic_val.json")
    theirs = load_cityscapes_panoptic(*(str(root / path) for path in paths), metadata)
    records = DatasetCatalog.get("cityscapes_fine_panoptic_val")
    assert len(records) == 3
    for record, other in zip(records, theirs, strict=True):
        things = [segment.pop("isthing") for segment in record["segments_info"]]
        assert record == other and things == [False, True, True]


def test_instances_are_the_regions_of_instance_ids(root: Path) -> None:
    records = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert [record["image_id"] for record in records] == [
        f"{city}_{frame}_leftImg8bit.png" for city, frames in CITIES.items() for frame in frames
    ]
    assert (records[0]["height"], records[0]["width"]) == (8, 12)
    annotations = records[2]["annotations"]
    found = [(entry["category_id"], entry["iscrowd"], entry["area"]) for entry in annotations]
    # person, rider, car, truck, ...: 0, 1, 2, 3; by rising id, the crowd first
    assert found == [(0, 1, 16), (1, 0, 4), (2, 0, 5), (2, 0, 6)]
    ids = _instance_ids()
    for entry, segment in zip(annotations, (24, 25003, 26000, 26001), strict=True):
        assert (coco_mask.decode(entry["segmentation"]) == (ids == segment)).all()
    assert annotations[2]["bbox"] == [1.0, 1.0, 3.0, 2.0]


def test_instances_of_the_polygons_are_detectron2s(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the labels of cityscapesScripts, which need not be installed."""
    pytest.importorskip("shapely")
    label = namedtuple("label", "name id hasInstances ignoreInEval")
    labels = [label("road", 7, False, False), label("person", 24, True, False), label("car", 26, True, False)]
    module = types.ModuleType("cityscapesscripts.helpers.labels")
    by = {"id2label": {one.id: one for one in labels}, "name2label": {one.name: one for one in labels}}
    vars(module).update(labels=labels, **by)
    for name in ("cityscapesscripts", "cityscapesscripts.helpers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    objects = [
        {"label": "road", "polygon": [[0, 0], [11, 0], [11, 7], [0, 7]]},
        {"label": "car", "polygon": [[1, 1], [8, 1], [8, 4], [1, 4]]},
        {"label": "persongroup", "polygon": [[6, 1], [11, 1], [11, 6], [6, 6]]},  # in front of the car
    ]
    for path in root.glob("gtFine/val/*/*_polygons.json"):
        path.write_text(json.dumps({"imgHeight": 8, "imgWidth": 12, "objects": objects}))
    records = DatasetCatalog.get("cityscapes_fine_instance_seg_polygons_val")
    assert [record["image_id"] for record in records] == [
        f"{city}_{frame}_leftImg8bit.png" for city, frames in CITIES.items() for frame in frames
    ]
    found = [(entry["category_id"], entry["iscrowd"], entry["bbox"]) for entry in records[0]["annotations"]]
    assert found == [(0, True, (6, 1, 12, 7)), (1, False, (1, 1, 6.5, 5))], "half a pixel larger, without overlap"
    mapper = SegmentationMapper(augmentations=[], targets=InstanceTargets(2))
    masks = mapper(records[0])["instances"].gt_masks
    assert masks[0].nonzero().amin(0).tolist() == [1, 1] and masks.sum() == 4 * 5
    monkeypatch.setitem(sys.modules, module.__name__, None)
    with pytest.raises(ImportError, match="pip install cityscapesscripts shapely"):
        DatasetCatalog.get("cityscapes_fine_instance_seg_polygons_val")


def test_missing_label_maps_name_the_script(root: Path) -> None:
    for path in root.glob("gtFine/val/*/*labelTrainIds.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)labelTrainIds\.png does not exist.*prepare_cityscapes\.py"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_val")


def test_broken_instance_ids_are_named(root: Path) -> None:
    path = root / "gtFine/val/ulm/ulm_000002_000019_gtFine_instanceIds.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadRecordError, match=r"ulm_000002_000019_gtFine_instanceIds\.png: cannot be read"):
        DatasetCatalog.get("cityscapes_fine_instance_seg_val")


def test_empty_directory(tmp_path: Path) -> None:
    for directory in ("leftImg8bit/train/aachen", "gtFine/train"):
        (tmp_path / "cityscapes" / directory).mkdir(parents=True)
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"(?s)holds no <city>/\*_leftImg8bit\.png.*Expected"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_train")
