"""Custom datasets: COCO panoptic JSON, and directories of images and label maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.config import load_config
from mask2former.data import (
    BadRecordError,
    register_coco_json,
    register_from_config,
    register_panoptic,
    register_semantic_folder,
    register_ytvis_json,
)
from mask2former.data.datasets import unregister
from mask2former.data.datasets.semantic_folder import pair_files
from mask2former.errors import ConfigError

CATEGORIES = [
    {"id": 30, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    {"id": 4, "name": "cell", "isthing": 1},
    {"id": 11, "name": "bar", "isthing": True},
]
Content = dict[str, Any]


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """Two images with two segments each; ids of images are names, categories in no order."""
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "ids").mkdir()
    images, annotations = [], []
    for name in ("a", "b"):
        Image.new("RGB", (6, 4)).save(tmp_path / f"images/sub/{name}.png")
        ids = np.zeros((4, 6, 3), np.uint8)
        ids[:2, :, 0], ids[3, :3, 1] = 5, 1
        Image.fromarray(ids).save(tmp_path / f"ids/{name}_ids.png")
        images.append({"id": name, "file_name": f"sub/{name}.png", "height": 4, "width": 6})
        segments = [{"id": 5, "category_id": 30}, {"id": 256, "category_id": 11, "iscrowd": 0}]
        annotations.append({"image_id": name, "file_name": f"{name}_ids.png", "segments_info": segments})
    return {"categories": CATEGORIES, "images": images, "annotations": annotations}


def _write(directory: Path, content: Content) -> tuple[str, str, str]:
    (directory / "panoptic.json").write_text(json.dumps(content))
    return str(directory / "panoptic.json"), str(directory / "images"), str(directory / "ids")


def test_panoptic_in_one_call(tmp_path: Path, content: Content) -> None:
    register_panoptic("custom", *_write(tmp_path, content))
    metadata = MetadataCatalog.get("custom")
    assert metadata.stuff_classes == metadata.thing_classes == ["cell", "bar", "sky"]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 11: 1}
    assert metadata.stuff_dataset_id_to_contiguous_id == {4: 0, 11: 1, 30: 2}
    assert metadata.stuff_colors[2] == [1, 2, 3] and len(set(map(tuple, metadata.stuff_colors))) == 3
    assert (metadata.evaluator_type, metadata.ignore_label, metadata.label_divisor) == ("coco_panoptic_seg", 255, 1000)
    assert metadata.get("json_file") is None and metadata.get("sem_seg_root") is None
    assert DatasetCatalog.get("custom")[1] == {
        "file_name": str(tmp_path / "images/sub/b.png"),
        "image_id": "b",
        "pan_seg_file_name": str(tmp_path / "ids/b_ids.png"),
        "height": 4,
        "width": 6,
        "segments_info": [
            {"id": 5, "category_id": 2, "isthing": False, "iscrowd": 0},
            {"id": 256, "category_id": 1, "isthing": True, "iscrowd": 0},
        ],
    }


def test_panoptic_with_label_maps_and_instances(tmp_path: Path, content: Content) -> None:
    paths = _write(tmp_path, content)
    register_panoptic("custom", *paths, sem_seg_root=paths[2], instances_json=paths[0], ignore_value=9)
    metadata = MetadataCatalog.get("custom")
    assert (metadata.json_file, metadata.sem_seg_root, metadata.ignore_label) == (paths[0], paths[2], 9)
    assert DatasetCatalog.get("custom")[0]["sem_seg_file_name"] == str(tmp_path / "ids/a_ids.png")


def test_a_changed_file_is_read_again(tmp_path: Path, content: Content) -> None:
    paths = _write(tmp_path, content)
    register_panoptic("custom", *paths)
    first = MetadataCatalog.get("custom")
    register_panoptic("custom", *paths)
    assert MetadataCatalog.get("custom") is first
    content["categories"] = [*CATEGORIES, {"id": 1, "name": "new", "isthing": 1}]
    register_panoptic("custom", *_write(tmp_path, content))
    assert MetadataCatalog.get("custom").stuff_classes == ["new", "cell", "bar", "sky"]
    with pytest.raises(ValueError, match=r"'coco_2017_val' is already in use, use another name for .*panoptic\.json"):
        register_panoptic("coco_2017_val", *paths)
    unregister("custom")
    assert "custom" not in DatasetCatalog


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({"id": "1", "name": "a", "isthing": 1}, r"categories\[0\]: needs an integer 'id'"),
        ({"id": 1, "name": "", "isthing": 1}, "needs a 'name'"),
        ({"id": 1, "name": "a"}, "needs 'isthing'"),
        ({"id": 11, "name": "a", "isthing": 0}, r"categories\[3\]: id 11 is used twice"),
    ],
)
def test_malformed_categories(tmp_path: Path, content: Content, category: Content, message: str) -> None:
    content["categories"] = [category, *CATEGORIES]
    with pytest.raises(BadRecordError, match=rf"panoptic\.json: .*{message}"):
        register_panoptic("custom", *_write(tmp_path, content))


def test_bad_annotations_raise_or_are_left_out(
    tmp_path: Path, content: Content, caplog: pytest.LogCaptureFixture
) -> None:
    content["annotations"].insert(0, {**content["annotations"][0], "image_id": 1.5})
    content["annotations"].append(content["annotations"][1])
    paths = _write(tmp_path, content)
    register_panoptic("custom", *paths)
    with pytest.raises(BadRecordError, match=r"annotations\[0\]: malformed: image_id 1\.5 is neither"):
        DatasetCatalog.get("custom")
    register_panoptic("custom", *paths, skip_bad_records=True)
    assert [record["image_id"] for record in DatasetCatalog.get("custom")] == ["a", "b"]
    assert "annotations[3]: malformed: image 'a' has two annotations" in caplog.text


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """Images and label maps in a directory deeper, one of each alone."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    names = {"x/1": (".jpg", ".png"), "2": (".JPEG", ".tif"), "3": (".png", None), "4": (None, ".png")}
    for name, (image, label) in names.items():
        for root, extension in ((images, image), (labels, label)):
            if extension is not None:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (5, 4)).save(root / f"{name}{extension}")
    (images / "notes.txt").write_text("x")
    (images / ".5.png").write_text("x")
    return images, labels


def test_directories_in_one_call(directories: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    images, labels = directories
    register_semantic_folder("custom", images, labels, ["background", "cell"], ignore_value=7)
    metadata = MetadataCatalog.get("custom")
    assert metadata.stuff_classes == ["background", "cell"] and len(metadata.stuff_colors) == 2
    assert (metadata.evaluator_type, metadata.ignore_label) == ("sem_seg", 7)
    assert DatasetCatalog.get("custom") == [
        {"file_name": str(images / "2.JPEG"), "sem_seg_file_name": str(labels / "2.tif")},
        {"file_name": str(images / "x/1.jpg"), "sem_seg_file_name": str(labels / "x/1.png")},
    ]
    assert "1 images without a label map are left out" in caplog.text and "3.png" in caplog.text
    assert "1 label maps without an image are left out" in caplog.text


def test_class_names_from_files(directories: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background\n\n  blood cell \n")
    (tmp_path / "classes.json").write_text('["background", "blood cell"]')
    for file in ("classes.txt", "classes.json"):
        register_semantic_folder("custom", *directories, tmp_path / file)
        assert MetadataCatalog.get("custom").stuff_classes == ["background", "blood cell"]
    (tmp_path / "classes.json").write_text('{"a": 1}')
    with pytest.raises(BadRecordError, match=r"classes\.json: a JSON file of class names must be a list"):
        register_semantic_folder("custom", *directories, tmp_path / "classes.json")
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"classes\.txt: needs a list of class names"):
        register_semantic_folder("custom", *directories, tmp_path / "classes.txt")


def test_mistakes_in_directories(directories: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = directories
    with pytest.raises(ValueError, match=r"the class names \['a'\] occur twice"):
        register_semantic_folder("custom", images, labels, ["a", "b", "a"])
    with pytest.raises(ValueError, match="ignore_value must be an integer, the value of a pixel, not '255'"):
        register_semantic_folder("custom", images, labels, ["a"], ignore_value="255")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        register_semantic_folder("custom", images, tmp_path / "nowhere", ["a"])
    register_semantic_folder("custom", images / "x", labels, ["a"])
    with pytest.raises(FileNotFoundError, match=r"(?s)none of the 1 images in .*among the 3 in .*Expected"):
        DatasetCatalog.get("custom")
    Image.new("L", (5, 4)).save(labels / "2.png")
    register_semantic_folder("custom", images, labels, ["a"])
    with pytest.raises(ValueError, match=r"2\.(png|tif) and .*2\.(png|tif) have the same name"):
        DatasetCatalog.get("custom")


def test_by_configuration(
    tmp_path: Path, content: Content, directories: tuple[Path, Path], data_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, content)
    monkeypatch.chdir(tmp_path)
    files = ["panoptic.json", "images", "ids"]
    entries = [["custom", *files], ["custom_ap", *files, "panoptic.json"]]
    labels = [["masks", "images", "labels", ["a", "b"]], ["masks_9", "images", "labels", ["a", "b"], 9]]
    options = ["DATASETS.COCO_PANOPTIC", [*entries, ["gone", "x.json", "x", "x"]], "DATASETS.SEMANTIC_FOLDER", labels]
    data_cfg.merge_from_list(options)
    register_from_config(data_cfg, ["custom", "custom_ap", "masks", "masks_9"])
    assert [MetadataCatalog.get(name).ignore_label for name in ("masks", "masks_9")] == [255, 9]
    assert MetadataCatalog.get("custom_ap").json_file == str(tmp_path / "panoptic.json")
    assert len(DatasetCatalog.get("custom")) == len(DatasetCatalog.get("masks")) == 2
    with pytest.raises(FileNotFoundError, match=r"x\.json"):
        register_from_config(data_cfg)
    data_cfg.DATASETS.COCO_PANOPTIC = [["custom", "panoptic.json", "images"]]
    with pytest.raises(ValueError, match=r"COCO_PANOPTIC holds entries \[name, json_file, image_root, png_root\]"):
        register_from_config(data_cfg)


def test_a_link_that_leads_in_a_circle_gives_every_pair_once(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
        (tmp_path / name / "again").symlink_to(".")
    assert len(pair_files(str(tmp_path / "images"), str(tmp_path / "labels")).pairs) == 1


def test_a_file_for_a_directory_and_the_reverse(tmp_path: Path, content: Content) -> None:
    json_file, images, ids = _write(tmp_path, content)
    with pytest.raises(NotADirectoryError, match=r"panoptic\.json is a file; give the directory"):
        register_panoptic("custom", json_file, json_file, ids)
    with pytest.raises(IsADirectoryError, match="images is a directory; give the file"):
        register_panoptic("custom", images, images, ids)
    with pytest.raises(NotADirectoryError, match=r"panoptic\.json is a file"):
        register_coco_json("custom", json_file, json_file)
    with pytest.raises(NotADirectoryError, match=r"panoptic\.json is a file"):
        register_semantic_folder("custom", images, json_file, ["a"])
    with pytest.raises(IsADirectoryError, match="ids is a directory"):
        register_ytvis_json("custom", ids, images)


@pytest.mark.parametrize("name", [[1], 5, None])
def test_names_of_datasets_that_are_no_names(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN and DATASETS\.TEST are lists of dataset names, but have"):
        register_from_config(load_config(), ["a", name])
