from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

Run = Callable[..., int]
PLACE = "ADE20K_2021_17_01/images/ADE/training/urban/street"


def annotation(*objects: tuple[int, str]) -> dict[str, Any]:
    return {"annotation": {"object": [{"name_ndx": number, "name": name} for number, name in objects]}}


@pytest.fixture
def root(tmp_path: Path, save: Callable) -> Path:
    """Classes 2978 wall (index 0), 401 car (14), 1000 (none of the 847), 5 (not in the JSON)."""
    numbers = np.array([[2978, 401], [1000, 0], [5, 401]])
    # The red channel counts in tens, and its remainder says nothing.
    pixels = np.stack([numbers // 256 * 10 + 3, numbers % 256, np.arange(6).reshape(3, 2)], axis=-1)
    stem = tmp_path / PLACE / "ADE_train_00016869"
    save(stem.with_name(f"{stem.name}_seg.png"), pixels.astype(np.uint8))
    save(stem.with_suffix(".jpg"), np.full((3, 2, 3), 77, np.uint8))
    objects = ((2978, "wall"), (401, "car, auto, automobile, machine, motorcar"), (1000, "a thing that is not listed"))
    save(stem.with_suffix(".json"), annotation(*objects))
    return tmp_path


def test_labels_and_images(root: Path, registered: Path, prepare: Run, capsys: Any) -> None:
    assert prepare("prepare_ade20k_full_sem_seg", "--splits", "train") == 0
    base = root / "ADE20K_2021_17_01"
    labels = Image.open(base / "annotations_detectron2/training/ADE_train_00016869.tif")
    assert np.asarray(labels).dtype == np.uint16
    assert np.asarray(labels).tolist() == [[0, 14], [65535, 65535], [65535, 14]]
    image = base / "images_detectron2/training/ADE_train_00016869.jpg"
    assert image.read_bytes() == (root / PLACE / image.name).read_bytes()
    (record,) = DatasetCatalog.get("ade20k_full_sem_seg_train")
    assert Path(record["file_name"]) == image and record["sem_seg_file_name"].endswith(
        "training/ADE_train_00016869.tif"
    )
    assert "classes [5] are not in the JSON and became void" in capsys.readouterr().out

    (base / "annotations_detectron2/training/ADE_train_00016869.tif").write_bytes(b"II*\0")
    assert prepare("prepare_ade20k_full_sem_seg", "--splits", "train") == 0
    assert "0 written, 0 already there, 1 repaired" in capsys.readouterr().out


def test_broken_annotation(root: Path, prepare: Run, save: Callable, capsys: Any) -> None:
    save(root / PLACE / "ADE_train_00016869.json", {"annotation": {"object": [{"name": "wall"}]}})
    assert prepare("prepare_ade20k_full_sem_seg", "--splits", "train") == 1
    assert (
        "ADE_train_00016869.json: is not an annotation file of ADE20K: KeyError('name_ndx')" in capsys.readouterr().err
    )


def test_image_of_another_size(root: Path, prepare: Run, save: Callable, capsys: Any) -> None:
    save(root / PLACE / "ADE_train_00016869.jpg", np.zeros((2, 3, 3), np.uint8))
    assert prepare("prepare_ade20k_full_sem_seg", "--splits", "train") == 1
    assert "_seg.png: is (3, 2) pixels (height, width)" in capsys.readouterr().err


def test_directories_of_any_depth(tmp_path: Path, prepare: Run, save: Callable, pixels: Callable) -> None:
    """Person 1831 and car 401; an object that names none of the 847 classes is no one's."""
    numbers = np.array([[0, 1831, 401, 1000]] * 2)
    encoded = np.stack([numbers // 256 * 10, numbers % 256, np.zeros_like(numbers)], axis=-1).astype(np.uint8)
    person = (1831, "person, individual, someone, somebody, mortal, soul")
    objects = ((401, "car, auto, automobile, machine, motorcar"), person, (1000, "a thing that is not listed"))
    names = {"training/street/1": "training/1", "validation/2": "validation/2"}
    for name in names:
        source = tmp_path / "ADE20K_2021_17_01/images/ADE" / name
        for path in (f"{source}_seg.png", f"{source}_parts_1.png", f"{source}/instance_000.png", f"{source}.jpg"):
            save(Path(path), encoded)
        save(Path(f"{source}.json"), annotation(*objects))
    assert prepare("prepare_ade20k_full_sem_seg") == 0
    base = tmp_path / "ADE20K_2021_17_01"
    for name in names.values():
        assert pixels(base / f"annotations_detectron2/{name}.tif").tolist() == [[65535, 11, 14, 65535]] * 2
        assert (base / f"images_detectron2/{name}.jpg").is_file()
