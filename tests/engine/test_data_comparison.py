"""Data that is given to a resumed training is compared with that of its first start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mask2former.data.formats import load_data, split, write_coco
from mask2former.engine.data_comparison import compare_data


def draw(directory: Path, count: int = 4, prefix: str = "") -> Path:
    directory.mkdir()
    square = [[1.5, 1, 5, 1, 5, 5, 1.5, 5]]
    images, annotations = [], []
    for i in range(1, count + 1):
        Image.new("L", (8, 8), i).save(directory / f"{prefix}{i}.png")
        images.append({"id": i, "file_name": f"{prefix}{i}.png", "height": 8, "width": 8})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": square})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (directory / "annotations.json").write_text(json.dumps(content))
    return directory


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The copy that a training on `cells` has."""
    for name, part in split(load_data(draw(tmp_path / "cells"))["all"], {"val": 0.3}).items():
        write_coco(part, tmp_path / "out/data" / f"{name}.json")
    return tmp_path / "out/data"


def test_the_same_data_is_the_same(stored: Path, tmp_path: Path) -> None:
    assert compare_data(tmp_path / "cells", stored) == ""
    assert compare_data(tmp_path / "cells/annotations.json", stored) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda c: c["images"].append({"id": 9, "file_name": "new.png", "height": 8, "width": 8}),
            "5 images 1 are new",
        ),
        (lambda c: (c["images"].pop(), c["annotations"].pop()), "3 images 1 are gone"),
        (lambda c: c["annotations"].pop(0), "4 images 1 have other annotations"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 6, 1, 6, 6]]), "1 have other annotations"),
        (lambda c: c["categories"][0].update(name="nucleus"), "4 have other annotations"),
    ],
)
def test_changes_are_told(stored: Path, tmp_path: Path, change: Callable[[Any], Any], told: str) -> None:
    file = tmp_path / "cells/annotations.json"
    Image.new("L", (8, 8), 9).save(tmp_path / "cells/new.png")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    found = compare_data(tmp_path / "cells", stored)
    assert told in found and "goes on with the data of its first start" in found


def test_other_data_is_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the data of this training, whose 4 images it does not have"):
        compare_data(draw(tmp_path / "others", prefix="x"), stored)
    with pytest.raises(FileNotFoundError):
        compare_data(tmp_path / "absent", stored)
