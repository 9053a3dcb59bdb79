"""Finding the format: what is there, what is ignored, and what the message says when nothing fits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mask2former.data.formats import FormatError, detect_format, load_data
from mask2former.errors import BadRecordError
from tests.data.formats import samples


def test_loops_hidden_files_and_case(tmp_path: Path) -> None:
    data = samples.sample(1)
    samples.write_label_maps(tmp_path, data)
    (tmp_path / "images" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("._im0.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    (tmp_path / "labels" / "._im0.png").write_bytes(b"no image")
    os.rename(tmp_path / "images" / "im0.png", tmp_path / "images" / "im0.PNG")
    loaded = load_data(tmp_path)["all"]
    assert [image["file_name"] for image in loaded.content["images"]] == ["images/im0.PNG", "images/im1.png"]


def test_a_link_to_the_images_is_followed(tmp_path: Path) -> None:
    samples.write_label_maps(tmp_path / "disk", samples.sample(1))
    (tmp_path / "data").mkdir()
    for name in ("images", "labels"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "disk" / name, target_is_directory=True)
    assert len(load_data(tmp_path / "data")["all"].content["images"]) == 2


def test_images_only(tmp_path: Path) -> None:
    samples.save_images(tmp_path / "images", samples.sample(0))
    with pytest.raises(FormatError, match="found 2 images but no annotations: expected label maps or YOLO") as raised:
        load_data(tmp_path)
    assert "labels/" in str(raised.value) and "Looked for:" in str(raised.value) and "CVAT" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("data.zip", "unpack it"), ("notes.md", "the format of the training data is unknown")],
)
def test_other_files(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FormatError, match=message):
        load_data(tmp_path / name)


def test_missing_empty_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="the directory is empty"):
        detect_format(tmp_path)
    with pytest.raises(ValueError, match="did you mean|Did you mean 'yolo'"):
        load_data(tmp_path, "yolov8")
    samples.write_yolo(tmp_path, samples.sample(0))
    with pytest.raises(FormatError, match="is not in the format 'cvat'"):
        load_data(tmp_path, "cvat")


@pytest.mark.parametrize("layout", ["{split}/images", "images/{split}", "{split}_images"])
def test_splits_of_directories(tmp_path: Path, layout: str) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        for stem, things in samples.sample(number, images=number + 1).items():
            path = tmp_path / layout.format(split=split) / f"{stem}.png"
            samples.save_image(path, number)
            labels = Path(str(path).replace("images", "masks"))
            if split != "test":
                samples.save_array(labels, samples.label_map(things))
    loaded = load_data(tmp_path)
    assert {split: len(data.content["images"]) for split, data in loaded.items()} == {"train": 1, "val": 2}
    assert loaded["train"].notes == ("test: none of its 3 images has annotations, so they are left out",)


def test_images_without_annotations_are_negatives(tmp_path: Path) -> None:
    samples.write_label_maps(tmp_path, samples.sample(0))
    samples.save_image(tmp_path / "images" / "empty.png", 9)
    data = load_data(tmp_path)["all"]
    assert len(data.content["images"]) == 3
    assert data.notes == ("all: 1 of 3 images have no objects and are kept as negatives",)
    data = load_data(tmp_path, negatives=False)["all"]
    assert len(data.content["images"]) == 2 and "left out" in data.notes[0]


def test_problems_are_collected(tmp_path: Path) -> None:
    samples.write_label_maps(tmp_path, samples.sample(0))
    (tmp_path / "labels" / "im0.png").write_bytes(b"broken")
    with pytest.raises(BadRecordError, match=r"im0\.png: cannot be read"):
        load_data(tmp_path)
    problems: list[BadRecordError] = []
    data = load_data(tmp_path, problems=problems)["all"]
    assert len(data.content["images"]) == 1 and problems and "im0.png" in problems[0].file


def test_exif_rotation_counts(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "a.jpg", exif=exif)
    samples.save_array(tmp_path / "labels" / "a.png", np.ones((30, 20), np.uint8))
    assert load_data(tmp_path)["all"].content["images"][0]["height"] == 30
    samples.save_array(tmp_path / "labels" / "a.png", np.ones((20, 30), np.uint8))
    with pytest.raises(BadRecordError, match="swapped"):
        load_data(tmp_path)
