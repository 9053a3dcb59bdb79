from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from scipy.io import savemat

Run = Callable[..., int]
NAME = "COCO_train2014_000000000077"


@pytest.fixture
def base(tmp_path: Path, save: Callable) -> Path:
    base = tmp_path / "coco/coco_stuff_10k"
    labels = np.array([[0, 1, 90], [13, 92, 182]], np.uint16)
    for split, name in (("train", NAME), ("test", f"{NAME[:-1]}8")):
        save(base / "images" / f"{name}.jpg", np.zeros((2, 3, 3), np.uint8))
        (base / "imageLists").mkdir(exist_ok=True)
        (base / "imageLists" / f"{split}.txt").write_text(f"{name}\r\n")
        (base / "annotations").mkdir(exist_ok=True)
        savemat(base / "annotations" / f"{name}.mat", {"S": labels, "captions": ["an image"]})
    return base


def test_labels_and_images(base: Path, registered: Path, prepare: Run, pixels: Callable, capsys: Any) -> None:
    assert prepare("prepare_coco_stuff_10k") == 0
    labels = base / "annotations_detectron2/train" / f"{NAME}.png"
    # Things 1-90 have gaps (13 is the twelfth); stuff begins at 92, as class 80.
    assert pixels(labels).tolist() == [[255, 0, 79], [11, 80, 170]] and pixels(labels).dtype == np.uint8
    image = base / "images_detectron2/train" / f"{NAME}.jpg"
    assert image.read_bytes() == (base / "images" / image.name).read_bytes()
    (record,) = DatasetCatalog.get("coco_2017_train_stuff_10k_sem_seg")
    assert (Path(record["file_name"]), Path(record["sem_seg_file_name"])) == (image, labels)
    assert [path.name for path in (base / "annotations_detectron2/test").iterdir()] == [f"{NAME[:-1]}8.png"]
    assert prepare("prepare_coco_stuff_10k") == 0
    assert "stuff_10k_train: 0 written, 1 already there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        ({"S": np.array([[0, 1, 12], [1, 1, 1]], np.uint16)}, "S has labels [12]"),
        ({"S": np.zeros((2, 3))}, "S is float64 of shape (2, 3)"),
        ({"T": np.zeros((2, 3), np.uint8)}, "cannot be read as a Matlab file with a label map S"),
        ({"S": np.zeros((3, 2), np.uint8)}, "its label map is (3, 2)"),
    ],
)
def test_bad_annotations(base: Path, prepare: Run, capsys: Any, content: dict[str, Any], message: str) -> None:
    savemat(base / "annotations" / f"{NAME}.mat", content)
    assert prepare("prepare_coco_stuff_10k", "--splits", "train") == 1
    shown = capsys.readouterr().err
    assert message in shown and NAME in shown


def test_missing_and_misleading_names(base: Path, prepare: Run, capsys: Any) -> None:
    (base / "annotations" / f"{NAME}.mat").unlink()
    assert prepare("prepare_coco_stuff_10k", "--splits", "train") == 1
    assert f"{NAME}.mat" in capsys.readouterr().err
    (base / "imageLists/train.txt").write_text("../../outside\n")
    assert prepare("prepare_coco_stuff_10k", "--splits", "train") == 1
    assert "'../../outside' is not the name of an image" in capsys.readouterr().err
    (base / "imageLists/train.txt").unlink()
    assert prepare("prepare_coco_stuff_10k", "--splits", "train") == 1
    assert "imageLists has no files train.txt" in capsys.readouterr().err
