"""What would train badly is named, and nothing else is an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.formats import load_data
from mask2former.data.inspect_training import (
    TrainingReport,
    check_training_data,
    format_training_report,
    suggest_queries,
)
from tests.data.formats import samples
from tests.data.formats.samples import SIZE, save_array, save_image, save_json


def check(root: Path, queries: int = 100) -> TrainingReport:
    problems: list = []
    return check_training_data(load_data(root, problems=problems), str(root), problems, queries=queries, workers=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten good images, in train and val."""
    for split, seed in (("train", 0), ("val", 1)):
        for number, (stem, things) in enumerate(samples.sample(seed, images=5, classes=("cell",)).items()):
            save_image(tmp_path / split / "images" / f"{stem}.png", 10 * seed + number)
            save_array(tmp_path / split / "labels" / f"{stem}.png", samples.label_map(things))
    return tmp_path


def test_good_data(data: Path) -> None:
    report = check(data)
    assert (report.errors, report.warnings, report.notes) == ([], [], [])
    assert report.queries == 100 and report.dataset.total == 10
    text = format_training_report(report)
    assert "Nothing that would train badly was found." in text and "format label_maps" in text
    rows = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if line.startswith("|")}
    assert [cell.strip() for cell in rows["train"][2:4]] == ["5", "0"]
    assert int(rows["object"][2]) == int(rows["train"][4])


def truncated(root: Path) -> None:
    path = root / "train" / "images" / "im0.png"
    path.write_bytes(path.read_bytes()[:2000])


def broken_labels(root: Path) -> None:
    (root / "train" / "labels" / "im0.png").write_bytes(b"")


def same_image(root: Path) -> None:
    for kind in ("images", "labels"):
        shutil.copy(root / "train" / kind / "im0.png", root / "val" / kind / "other.png")


def many_objects(root: Path) -> None:
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 97
    for number in range(3):
        save_array(root / "train" / "labels" / f"im{number}.png", ids.astype(np.uint8) + 20)


def empty_images(root: Path) -> None:
    for number in range(60):
        save_image(root / "train" / "images" / f"empty{number}.png", 100 + number)


def semantic(root: Path) -> None:
    labels = np.zeros(SIZE, np.uint8)
    for number in range(12):
        top, left = number // 4 * 20, number % 4 * 24
        labels[top : top + 12, left : left + 14] = 1 + number % 2
    for path in root.rglob("labels/*.png"):
        save_array(path, labels)


def swapped(root: Path) -> None:
    Image.new("RGB", SIZE).save(root / "train" / "images" / "im0.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "im0.png: cannot be read"),
        (broken_labels, "im0.png: cannot be read"),
        (same_image, "the same image is in train and val"),
        (many_objects, "more objects (up to 97) than the model has queries (90)"),
        (empty_images, "train: 60 of 65 images have no objects"),
        (semantic, "look like classes instead of objects"),
        (swapped, "width and height are swapped"),
    ],
)
def test_what_would_train_badly(data: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(data)
    report = check(data, queries=90)
    assert [error for error in report.errors if message in error], report.errors
    assert len(report.errors) == 1
    assert f"error: {report.errors[0]}" in format_training_report(report)


def test_objects_outside_and_twice(tmp_path: Path) -> None:
    content = samples.coco_content(samples.sample(0))
    entry = content["annotations"][0]
    content["annotations"].append({**entry, "id": 99})
    content["annotations"].append({**entry, "id": 100, "segmentation": [[200, 200, 210, 200, 210, 210]]})
    samples.save_images(tmp_path, samples.sample(0))
    save_json(tmp_path / "a.json", content)
    report = check(tmp_path)
    assert len(report.errors) == 1 and "annotation 100 (cell): has no pixels inside the image" in report.errors[0]
    assert any("have an object twice: im0.png" in warning for warning in report.warnings)
    assert any("class 'debris' has only" in warning for warning in report.warnings)
    assert report.notes == ["there is no validation split; 'mask2former split' makes one"]


def test_the_cause_of_many_errors_is_printed(tmp_path: Path) -> None:
    sample = samples.sample(0, images=12)
    content = samples.coco_content(sample)
    for entry in content["annotations"]:
        entry["segmentation"] = [[0.01, 0.01, 0.02, 0.01, 0.02, 0.02]]
    samples.save_images(tmp_path, sample)
    save_json(tmp_path / "a.json", content)
    lines = format_training_report(check(tmp_path)).splitlines()
    assert [line for line in lines if line.startswith("error: ") and "normalized polygons" in line], lines
    assert any(line.startswith("error: and ") for line in lines)


def test_tiny_objects_and_copies(data: Path) -> None:
    for path in data.rglob("labels/*.png"):
        ids = np.zeros(SIZE, np.uint8)
        ids[3:7, 3:7], ids[13:17, 3:7] = 1, 2
        save_array(path, ids)
    for kind in ("images", "labels"):
        shutil.copy(data / "train" / kind / "im0.png", data / "train" / kind / "again.png")
    report = check(data)
    assert not report.errors and len(report.warnings) == 2
    assert "again.png and im0.png" in report.warnings[0] and "smaller than 8x8" in report.warnings[1]


def test_no_usable_image(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(b"x")
    report = check(tmp_path)
    assert "no image can be used" in report.errors[0] and format_training_report(report)


def test_number_of_queries() -> None:
    assert [suggest_queries(most) for most in (0, 40, 95, 96, 375)] == [100, 100, 100, 200, 400]
