from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json as detectron2_load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former.data import (
    BadRecordError,
    build_test_loader,
    build_train_loader,
    load_coco_json,
    register_all,
    register_coco_json,
    register_from_config,
)

Write = Callable[[], tuple[Path, Path]]


def test_one_call(write: Write) -> None:
    path, directory = write()
    register_coco_json("tiny", path, directory)
    metadata = MetadataCatalog.get("tiny")
    assert metadata.thing_classes == ["bar", "cell"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert (metadata.evaluator_type, metadata.json_file, metadata.image_root) == (
        "coco",
        str(path),
        str(directory),
    )
    records = DatasetCatalog.get("tiny")
    assert [record["image_id"] for record in records] == [10, 11, 12, 13, 14, 15]
    assert [entry["category_id"] for entry in records[0]["annotations"]] == [1, 0, 1]
    assert [entry["iscrowd"] for entry in records[0]["annotations"]] == [0, 0, 1]


def test_records_are_those_of_detectron2(write: Write) -> None:
    path, directory = write()
    ours = load_coco_json(str(path), str(directory))
    theirs = detectron2_load(str(path), str(directory), "tiny_detectron2")
    MetadataCatalog.pop("tiny_detectron2")
    for record in ours:
        for entry in record["annotations"]:
            del entry["id"]
    assert ours == theirs


def test_again_and_elsewhere(write: Write, tmp_path: Path, tiny_content: Any) -> None:
    path, directory = write()
    register_coco_json("tiny", path, directory)
    metadata = MetadataCatalog.get("tiny")
    register_coco_json("tiny", path, directory)
    assert MetadataCatalog.get("tiny") is metadata
    tiny_content[2]["categories"].append({"id": 9, "name": "new"})
    write()
    os.utime(path, ns=(1, 1))
    register_coco_json("tiny", path, directory)
    assert MetadataCatalog.get("tiny").thing_classes == ["bar", "cell", "new"]
    register_coco_json("tiny", path, tmp_path)
    assert MetadataCatalog.get("tiny").image_root == str(tmp_path)


def test_subset_of_categories(write: Write) -> None:
    path, directory = write()
    register_coco_json("tiny", path, directory, keep_category_ids=[7])
    assert MetadataCatalog.get("tiny").thing_classes == ["cell"]
    kept = [entry["category_id"] for record in DatasetCatalog.get("tiny") for entry in record["annotations"]]
    assert kept == [0] * 10
    with pytest.raises(ValueError, match="to keep"):
        register_coco_json("tiny", path, directory, keep_category_ids=[8])


def test_names_of_others_are_respected(write: Write) -> None:
    path, directory = write()
    with pytest.raises(ValueError, match="coco_2017_val"):
        register_coco_json("coco_2017_val", path, directory)


def test_yaml_key(write: Write, data_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write()
    data_cfg.DATASETS.COCO_JSON = [["tiny", "instances.json", "images"]]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(FileNotFoundError, match=r"elsewhere/instances\.json nor .*/instances\.json"):
        register_from_config(data_cfg)
    try:
        register_all(tmp_path)  # found below the root
        register_from_config(data_cfg)
        assert MetadataCatalog.get("tiny").json_file == str(tmp_path / "instances.json")
        (elsewhere / "images").mkdir()  # and before that in the working directory
        register_from_config(data_cfg)
        assert MetadataCatalog.get("tiny").image_root == str(elsewhere / "images")
    finally:
        register_all()
    for entry in ("tiny", ["tiny", "a.json"], ["tiny", "a.json", 3]):
        data_cfg.DATASETS.COCO_JSON = [entry]
        with pytest.raises(ValueError, match=r"DATASETS\.COCO_JSON"):
            register_from_config(data_cfg)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ("[1, 2", "not a JSON file"),
        ("[]", "JSON list"),
        ("\ufeff{}", "has no 'images'"),  # with the mark of Windows editors, which is no mistake
        ("{}", "'categories'|'images'"),
        ('{"images": {}, "categories": []}', "'images'"),
        ('{"images": [], "categories": []}', "declares no categories"),
        ('{"images": [], "categories": [{"id": "1", "name": "a"}]}', r"categories\[0\]: needs an integer"),
        ('{"images": [], "categories": [{"id": 1}]}', r"categories\[0\]: needs a 'name'"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "used twice"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": 3}', "'annotations'"),
        ("[" * 100000, "not a JSON file|nested too deeply"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(BadRecordError, match=message) as caught:
        load_coco_json(str(path), "")
    assert str(caught.value).startswith(str(path))


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadRecordError, match="not text in UTF-8"):
        register_coco_json("tiny", tmp_path / "a.json", tmp_path)
    with pytest.raises(IsADirectoryError, match="give the file"):
        register_coco_json("tiny", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("images", {"id": 11}, "image 11: the id is used twice"),
        ("images", {"id": None}, r"images\[0\]: needs an integer"),
        ("images", {"file_name": 5}, "image 10: needs a 'file_name'"),
        ("images", {"width": "40"}, "image 10: needs a positive integer 'width'"),
        ("images", {"height": 0}, "image 10: needs a positive integer 'height'"),
        ("annotations", {"id": 2}, "annotation 2: the id is used twice"),
        ("annotations", {"id": [1]}, r"annotations\[0\]: needs an integer"),
        ("annotations", {"image_id": 99}, "annotation 1: belongs to image 99"),
        ("annotations", {"image_id": {}}, r"annotation 1: belongs to image \{\}"),
        ("annotations", {"category_id": 93}, "annotation 1: category 93 is not declared"),
        ("annotations", {"iscrowd": "yes"}, "annotation 1: 'iscrowd'"),
        ("annotations", {"segmentation": "abc"}, "annotation 1: 'segmentation'"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotation 1: 'bbox'"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "annotation 1: 'bbox'"),
    ],
)
def test_bad_records_raise_or_are_skipped(
    tiny_content: Any,
    write: Write,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    change: dict[str, Any],
    message: str,
) -> None:
    tiny_content[2][kind][0].update(change)
    path, directory = write()
    with pytest.raises(BadRecordError, match=message):
        load_coco_json(str(path), str(directory))
    with caplog.at_level(logging.WARNING):
        records = load_coco_json(str(path), str(directory), skip_bad_records=True)
    assert 4 <= len(records) <= 6 and "bad records" in caplog.text


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon 0 has 7 numbers"),
        ([[1, 2, 3, 4, 5, 6], [1, 2, "x", 4, 5, 6]], "polygon 1"),
        ([5, 6, 7, 8, 9, 10], "polygon 0"),
        ([[0, 0, 1e6, 0, 5, 5]], "far outside"),
        ([[0, 0, float("nan"), 0, 5, 5]], "NaN"),
        ({"size": [32, 41], "counts": "x"}, r"size \[32, 41\]"),
        ({"counts": "x"}, "'size'"),
        ({"size": [32, 40], "counts": "broken~"}, "invalid characters"),
        ({"size": [32, 40], "counts": [1, 2, 3]}, "do not add up"),
    ],
)
def test_broken_masks_are_found_before_training(
    tiny_content: Any, write: Write, segmentation: Any, message: str
) -> None:
    tiny_content[2]["annotations"][0]["segmentation"] = segmentation
    path, directory = write()
    with pytest.raises(BadRecordError, match=f"annotation 1: .*{message}"):
        load_coco_json(str(path), str(directory))
    assert len(load_coco_json(str(path), str(directory), skip_bad_records=True)) == 5


def test_degenerate_polygons_are_left_out(tiny_content: Any, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Points and lines, which annotation tools leave behind: as in detectron2, the other objects are used."""
    annotations = tiny_content[2]["annotations"]
    annotations[0]["segmentation"].append([1, 2, 3, 4])
    annotations[3]["segmentation"] = [[1, 2, 3, 4], [7, 8]]
    annotations[4]["segmentation"] = []
    path, directory = write()
    with caplog.at_level(logging.WARNING):
        records = load_coco_json(str(path), str(directory))
    assert [len(record["annotations"]) for record in records] == [3, 1, 3, 3, 3, 0]
    assert len(records[0]["annotations"][0]["segmentation"]) == 1
    assert "2 objects" in caplog.text and "annotation 4" in caplog.text


def test_only_the_datasets_in_use_must_exist(write: Write, data_cfg: CfgNode, tmp_path: Path) -> None:
    """Evaluation must not ask for the training images."""
    path, directory = write()
    data_cfg.DATASETS.COCO_JSON = [
        ["gone", str(tmp_path / "gone.json"), str(directory)],
        ["tiny", str(path), str(directory)],
    ]
    register_from_config(data_cfg, ["tiny", "coco_2017_val"])
    assert "tiny" in DatasetCatalog and "gone" not in DatasetCatalog
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        register_from_config(data_cfg, ["gone"])
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        register_from_config(data_cfg)
    data_cfg.DATASETS.TRAIN, data_cfg.DATASETS.TEST = ("gone",), ("tiny",)
    assert len(build_test_loader(data_cfg, "tiny").dataset) == 6
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        build_train_loader(data_cfg)


def test_missing_optional_parts(tiny_content: Any, write: Write) -> None:
    del tiny_content[2]["annotations"]
    path, directory = write()
    assert all(record["annotations"] == [] for record in load_coco_json(str(path), str(directory)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_gives_records_or_the_one_error(tiny_content: Any, tmp_path: Path, data: st.DataObject) -> None:
    content = json.loads(json.dumps(tiny_content[2]))
    for _ in range(3):
        kind = data.draw(st.sampled_from(["images", "annotations", "categories"]))
        if isinstance(content[kind], list) and content[kind] and data.draw(st.booleans()):
            entry = content[kind][data.draw(st.integers(0, len(content[kind]) - 1))]
            if isinstance(entry, dict) and entry:
                entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(json_values)
        else:
            content[kind] = data.draw(st.one_of(st.just(content[kind]), json_values))
    path = tmp_path / "fuzz.json"
    path.write_text(json.dumps(content))
    for skip in (False, True):
        try:
            records = load_coco_json(str(path), "", skip_bad_records=skip)
        except BadRecordError:
            continue
        assert all(isinstance(record["image_id"], int) for record in records)
