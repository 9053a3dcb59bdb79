from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.serving.errors import InvalidOptionError, TooLargeError, UnreadableImageError, UnsupportedTypeError
from mask2former.serving.limits import Limits
from mask2former.serving.web.dataset import Dataset

from .conftest import write_dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "shapes")


def change(data: Path, **image: object) -> Dataset:
    """Return the dataset with other facts of its first image, which no reader has checked."""
    dataset = Dataset(data)
    dataset._splits["all"].images[0].update(image)
    return dataset


def test_images_classes_and_objects(data: Path) -> None:
    dataset = Dataset(data)
    assert (dataset.splits, dataset.classes("all")) == (["all"], ["round", "long"])
    assert dataset.images("all") == [0, 1] and dataset.images("all", "long") == [0]
    result = dataset.result("all", 0, Limits())
    assert result.counts() == {"round": 1, "long": 1} and result.size == (20, 30)
    assert result.objects().masks.areas.tolist() == [80, 48]
    with pytest.raises(InvalidOptionError, match="no such image"):
        dataset.result("all", 2, Limits())
    with pytest.raises(InvalidOptionError, match="no such split"):
        dataset.images("test")


def test_an_annotation_file_alone(data: Path) -> None:
    assert Dataset(data / "instances.json").result("all", 1, Limits()).counts() == {"round": 1}


def test_only_the_directory_is_read(data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(secret)
    (data / "link.png").symlink_to(secret)
    for name in ("../secret.png", str(secret), "link.png", "/etc/passwd"):
        with pytest.raises(InvalidOptionError, match="not below the directory"):
            change(data, file_name=name).result("all", 0, Limits())
    with pytest.raises(InvalidOptionError, match=r"gone\.png is missing"):
        change(data, file_name="gone.png").result("all", 0, Limits())


def test_images_that_do_not_fit(data: Path) -> None:
    with pytest.raises(UnsupportedTypeError):
        change(data, file_name="instances.json").result("all", 0, Limits())
    with pytest.raises(UnreadableImageError, match="30x20 pixels, but the annotations say 31x20"):
        change(data, width=31).result("all", 0, Limits())
    with pytest.raises(TooLargeError):
        change(data).result("all", 0, Limits(max_bytes=10))


def test_bad_records_are_noted(data: Path) -> None:
    content = json.loads((data / "instances.json").read_text())
    content["annotations"][0]["category_id"] = 77
    (data / "instances.json").write_text(json.dumps(content))
    note = Dataset(data).notes("all")[-1]
    assert note.startswith("one bad record is left out: instances.json: annotation 1: ")
    content["annotations"][1]["category_id"] = 78
    (data / "instances.json").write_text(json.dumps(content))
    note = Dataset(data).notes("all")[-1]
    assert note.startswith("2 bad records are left out, the first: instances.json: ")
    assert str(data.parent) not in note  # those who see the page need not know
