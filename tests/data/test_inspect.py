from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data import register_all, register_coco_json, register_panoptic, register_semantic_folder
from mask2former.data.__main__ import main
from mask2former.data.inspect import check_dataset, count_values
from mask2former.data.inspect_report import contact_sheet, format_report, select_records
from mask2former.errors import BadRecordError

from ..panoptic_sample import PanopticSample


@pytest.fixture(autouse=True)
def _default_root() -> Iterator[None]:
    yield
    register_all()


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Four images 8x6 (width x height) with label maps: classes 0 and 1, and 2 columns of 255."""
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 4:6], labels[:, 6:] = 1, 255
    for directory in ("images", "labels"):
        (tmp_path / directory).mkdir()
    for name in "abcd":
        Image.new("RGB", (8, 6), (90, 90, 90)).save(tmp_path / f"images/{name}.jpg")
        Image.fromarray(labels).save(tmp_path / f"labels/{name}.png")
    register_semantic_folder("masks", tmp_path / "images", tmp_path / "labels", ["ground", "cell", "never"])
    return tmp_path


def test_semantic_counts(masks: Path) -> None:
    report = check_dataset("masks", workers=1)
    assert (report.rules.dataset_type, report.total, report.problems, report.notes) == ("semantic", 4, [], [])
    for inspection in report.inspections:
        assert inspection.size == (6, 8) and inspection.pixels == Counter({0: 24, 1: 12}) and inspection.void == 12
    text = format_report(report)
    assert "masks: semantic dataset, 3 classes, 4 records" in text and "most frequent: 8x6 (4)" in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert rows["ground"].split("|")[2:4] == [" 4         ", " 66.667        "]
    assert "33.333" in rows["cell"] and "absent" in rows["never"]
    assert "1 of 3 classes do not occur: never" in text
    assert "25.00 % of the pixels have no class" in text and "No missing or broken files." in text


def test_semantic_problems_are_named(masks: Path) -> None:
    (masks / "images/a.jpg").write_bytes(b"no image")
    wrong = np.zeros((6, 8), np.uint8)
    wrong[0, :3] = 7
    Image.fromarray(wrong).save(masks / "labels/b.png")
    Image.new("L", (6, 8)).save(masks / "labels/c.png")
    (masks / "images/e.jpg").write_bytes(b"")
    report = check_dataset("masks", workers=2)
    assert [bool(inspection.problems) for inspection in report.inspections] == [True, True, True, False]
    lone, *problems = report.problems
    assert "images/e.jpg: has no label map of the same name" in lone
    assert "images/a.jpg: cannot be read as an image" in problems[0]
    assert (
        "labels/b.png: 3 pixels have the values 7, which are neither a class index in [0, 2] nor the ignore label 255"
        in problems[1]
    )
    assert "labels/c.png: is 6x8 (width x height), its image" in problems[2] and len(problems) == 3
    text = format_report(report)
    assert "4 problems (3 records cannot be used):" in text and "No missing" not in text


@pytest.fixture
def panoptic(tmp_path: Path) -> dict[str, Any]:
    """Two images 6x4: sky, two cells, a crowd of cells."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    ids = np.zeros((4, 6, 3), np.uint8)
    ids[0, :, 0], ids[1, :2, 1], ids[1, 4:, 2], ids[3, :, 0] = 5, 1, 1, 9
    for number in (1, 2):
        Image.new("RGB", (6, 4)).save(tmp_path / f"images/{number}.jpg")
        Image.fromarray(ids).save(tmp_path / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 4, "width": 6})
        segments = [
            {"id": 5, "category_id": 2},
            {"id": 256, "category_id": 1},
            {"id": 65536, "category_id": 1},
            {"id": 9, "category_id": 1, "iscrowd": 1},
        ]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "cell", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _register(directory: Path, content: dict[str, Any]) -> None:
    (directory / "panoptic.json").write_text(json.dumps(content))
    register_panoptic("segments", directory / "panoptic.json", directory / "images", directory / "images")


def test_panoptic_counts(tmp_path: Path, panoptic: dict[str, Any]) -> None:
    _register(tmp_path, panoptic)
    report = check_dataset("segments", workers=1)
    assert report.rules.dataset_type == "panoptic" and report.problems == report.notes == []
    inspection = report.inspections[1]
    assert inspection.pixels == Counter({1: 6, 0: 4}) and inspection.objects == Counter({0: 2, 1: 1})
    assert (inspection.crowds, inspection.void) == (1, 8)
    assert "6 objects or segments, 2 crowd regions, 0 records without any class" in format_report(report)


def test_panoptic_problems_are_named(tmp_path: Path, panoptic: dict[str, Any]) -> None:
    (tmp_path / "images/1.jpg").unlink()  # the first is no reason to stop
    first, second = (annotation["segments_info"] for annotation in panoptic["annotations"])
    first[0]["id"] = 77  # of no pixel; and the pixels of 5 have no entry
    panoptic["annotations"].append({**panoptic["annotations"][1], "image_id": 3, "file_name": "3.png"})
    panoptic["images"][1]["width"] = 7
    _register(tmp_path, panoptic)
    report = check_dataset("segments", workers=1)
    assert [note.split("images/")[1] for note in report.notes] == ["1.png: segment 77 (sky) has no pixels"]
    text = [problem.split("images/", 1)[1] for problem in report.problems]
    assert text[:2] == ["1.jpg: the file does not exist", "1.png: ids 5 have 6 pixels but are not in segments_info"]
    assert text[2].startswith("2.jpg: the image is 6x4 pixels (width x height), its record says 7x4")
    assert text[3:] == ["3.jpg: the file does not exist", "3.png: the file does not exist"]
    second[1]["id"] = "256"
    _register(tmp_path, panoptic)
    with pytest.raises(BadRecordError, match=r"annotations\[1\]: .* segment '256': its id is not an integer"):
        check_dataset("segments", workers=1)


def test_instances(tiny_content: Any, write: Any) -> None:
    register_coco_json("tiny", *write())
    report = check_dataset("tiny", workers=1)
    assert report.rules.dataset_type == "instance" and report.problems == []
    assert sum((inspection.objects for inspection in report.inspections), Counter()) == Counter({0: 5, 1: 5})
    assert report.inspections[0].pixels == Counter({0: 8 * 6, 1: 81})  # classes by rising id: bar, cell
    assert sum(inspection.crowds for inspection in report.inspections) == 5
    assert "1 records without any class" in format_report(report)
    (tiny_content[1] / "3.png").unlink()
    assert "3.png: the file does not exist" in check_dataset("tiny", workers=1).problems[0]


def test_instances_of_other_code(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    annotations = [
        {"id": 4, "category_id": 0, "segmentation": square},
        {"category_id": 1, "segmentation": square},
        {"category_id": 0, "segmentation": [[1, 1, 4]]},
        {"category_id": 0, "segmentation": [[20, 20, 30, 20, 30, 30]]},
    ]
    record = {"file_name": str(tmp_path / "a.png"), "annotations": annotations}
    DatasetCatalog["other"] = lambda: [record]
    MetadataCatalog.get("other").set(thing_classes=["square"], json_file=str(tmp_path / "ground_truth.json"))
    try:
        report = check_dataset("other")
        assert report.inspections[0].pixels == Counter({0: 6})
        assert "annotation number 1 of the image: category_id 1 is not a class index in [0, 0]" in report.problems[0]
        assert "annotation number 2 of the image: polygon 0 has 3 numbers" in report.problems[1]
        assert (
            "ground_truth.json: does not exist" in report.notes[0] and "no pixels inside the image" in report.notes[1]
        )
    finally:
        DatasetCatalog.pop("other")
        MetadataCatalog.pop("other")


def test_limit_takes_records_from_everywhere(masks: Path) -> None:
    report = check_dataset("masks", limit=2, workers=1)
    assert [Path(record["file_name"]).stem for record in report.records] == ["a", "d"]
    assert "2 of 4 records" in format_report(report)
    with pytest.raises(ValueError, match="no dataset 'nothing' is registered"):
        check_dataset("nothing")


def test_sheet_shows_the_classes(masks: Path) -> None:
    sheet = contact_sheet(check_dataset("masks", workers=1), count=3)
    assert sheet.mode == "RGB" and sheet.width == 2 * 488 + 8
    pixels = np.asarray(sheet)[8:368, 8:488].astype(int)  # the first image, 480 wide
    ground, cell, void = (pixels[180, x] for x in (120, 300, 450))
    assert np.abs(void - 90).max() < 5  # the image itself
    assert np.abs(ground - 90).max() > 20 and np.abs(cell - 90).max() > 20 and np.abs(ground - cell).max() > 20


def test_records_for_the_sheet() -> None:
    classes = [frozenset(entry) for entry in ({0}, {0}, {0, 1}, {0}, {2}, {0}, {3})]
    assert select_records(classes, [0, 1, 2, 3, 4, 5], 2) == [2, 4]  # 6 is not usable
    assert select_records(classes, [0, 1, 2, 3, 4, 5], 4) == [1, 2, 4, 5]
    assert select_records(classes, range(7), 20) == list(range(7))
    assert select_records(classes, [], 3) == []


def test_values_are_counted() -> None:
    values = np.random.default_rng(0).integers(-3, 5, (13, 7))
    present, counts = np.unique(values, return_counts=True)
    assert count_values(values) == dict(zip(present.tolist(), counts.tolist(), strict=True))
    assert count_values(np.zeros((0, 4), int)) == {}


def test_command(masks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = masks / "own.yaml"
    config.write_text('DATASETS: {SEMANTIC_FOLDER: [["flowers", "images", "labels", ["ground", "cell", "never"]]]}\n')
    monkeypatch.chdir(masks)
    options = ["--config-file", str(config), "--output", str(masks / "sheet.jpg"), "--workers", "1", "--samples", "2"]
    assert main(["check", "flowers", *options]) == 0
    out = capsys.readouterr().out
    assert "flowers: semantic dataset" in out and f"Contact sheet: {masks / 'sheet.jpg'}" in out
    with Image.open(masks / "sheet.jpg") as sheet:
        assert sheet.width == 2 * 488 + 8
    (masks / "labels/b.png").write_bytes(b"")
    (masks / "labels/a.png").unlink()
    assert main(["check", "flowers", *options]) == 1
    out = capsys.readouterr().out
    assert "labels/b.png: cannot be read" in out and "images/a.jpg: has no label map" in out


def test_command_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ade20k_sem_seg_val", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "ADEChallengeData2016/images/validation") in error and "Expected:" in error
    with pytest.raises(SystemExit) as stop:
        main(["check", "ade20k_sem_seg_vla"])
    assert stop.value.code == 2 and "Did you mean 'ade20k_sem_seg_val'" in capsys.readouterr().err


def test_areas_of_a_panoptic_dataset(panoptic_sample: PanopticSample) -> None:
    sample = panoptic_sample
    register_panoptic("sample", sample.json_file, sample.image_dir, sample.panoptic_dir)
    report = check_dataset("sample", workers=1)
    names = {entry["id"]: entry["name"] for entry in sample.content["categories"]}
    assert report.problems == [] and len(report.records) == 2 and len(report.rules.names) == len(names) == 7
    areas: Counter[str] = Counter()
    for _, segment, mask in sample.truths():
        if not segment["iscrowd"]:
            areas[names[segment["category_id"]]] += int(mask.sum())
    inspection = sum((entry.pixels for entry in report.inspections), Counter())
    assert {report.rules.names[label]: pixels for label, pixels in inspection.items()} == dict(areas)


def test_command_says_last_that_nothing_can_be_learned(
    masks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a part of the files."""
    for file in (masks / "labels").iterdir():
        with Image.open(file) as image:
            values = np.zeros(image.size[::-1], np.uint8)
        values[0] = 255
        Image.fromarray(values).save(file)
    config = masks / "own.yaml"
    config.write_text('DATASETS: {SEMANTIC_FOLDER: [["ignored", "images", "labels", ["ground", "cell"]]]}\n')
    monkeypatch.chdir(masks)
    for options in ([], ["--limit", "1"]):
        assert main(["check", "ignored", "--config-file", str(config), "--workers", "1", *options]) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("Nothing to train on: ") and "255, which is ignored; 'cell' never occurs" in last
