from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mask2former.data.datasets.categories import index_by_id
from mask2former.data.datasets.coco import coco_categories

from ..panoptic_sample import HEIGHT, WIDTH, PanopticSample

Run = Callable[..., int]
SEMANTIC, ZIPS = "prepare_coco_semantic_annos_from_panoptic_annos", "prepare_coco_panoptic_zips"

# Segments 512 (category 200, the last class), 9 (category 1, the first), and 70000 that the JSON lacks.
IDS = np.zeros((3, 4, 3), np.uint8)
IDS[0, :, 1], IDS[1, :, 0], IDS[2, 0] = 2, 9, (112, 17, 1)
SEGMENTS = [{"id": 512, "category_id": 200}, {"id": 9, "category_id": 1}]


def panoptic(*names: str) -> dict[str, Any]:
    entries = [{"image_id": int(name), "file_name": f"{name}.png", "segments_info": SEGMENTS} for name in names]
    return {"annotations": entries}


@pytest.fixture
def unpacked(tmp_path: Path, save: Callable) -> Path:
    save(tmp_path / "coco/panoptic_val2017/000000000001.png", IDS)
    save(tmp_path / "coco/val2017/000000000001.jpg", IDS)
    save(tmp_path / "coco/annotations/panoptic_val2017.json", panoptic("000000000001"))
    return tmp_path / "coco"


def test_semantic(unpacked: Path, registered: Path, prepare: Run, pixels: Callable, capsys: Any) -> None:
    assert prepare(SEMANTIC, "--splits", "val") == 0
    written = unpacked / "panoptic_semseg_val2017/000000000001.png"
    assert pixels(written).tolist() == [[132] * 4, [0] * 4, [255] * 4] and pixels(written).dtype == np.uint8
    (record,) = DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert Path(record["sem_seg_file_name"]) == written
    assert prepare(SEMANTIC, "--splits", "val") == 0
    assert "panoptic_semseg_val2017: 0 written, 1 already there" in capsys.readouterr().out
    assert prepare(SEMANTIC, "--splits", "train") == 1
    assert "panoptic_train2017.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("200", "201", "000000000001.png: 201 is missing, or not a category of COCO"),
        ('"segments_info"', '"segments"', "000000000001.png: 'segments_info' is missing, or not a category of COCO"),
        ("000000000001.png", "2.png", "2.png: the file does not exist"),
    ],
)
def test_semantic_names_bad_records(
    unpacked: Path, prepare: Run, capsys: Any, old: str, new: str, message: str
) -> None:
    path = unpacked / "annotations/panoptic_val2017.json"
    path.write_text(path.read_text().replace(old, new))
    assert prepare(SEMANTIC, "--splits", "val") == 1
    assert message in capsys.readouterr().err


def test_semantic_of_many_segments(
    panoptic_sample: PanopticSample, tmp_path: Path, prepare: Run, save: Callable, pixels: Callable
) -> None:
    save(tmp_path / "coco/annotations/panoptic_val2017.json", panoptic_sample.content)
    (tmp_path / "coco/panoptic_val2017").symlink_to(panoptic_sample.panoptic_dir)
    assert prepare(SEMANTIC, "--splits", "val") == 0
    index = index_by_id(coco_categories())
    expected = {name: np.full((HEIGHT, WIDTH), 255, np.uint8) for name in panoptic_sample.masks}
    for name, segment, mask in panoptic_sample.truths():
        expected[name][mask] = index[segment["category_id"]]
    for name, labels in expected.items():
        written = pixels(tmp_path / "coco/panoptic_semseg_val2017" / name)
        assert len(np.unique(labels)) > 4 and np.array_equal(written, labels)


# ------------------------------------------------------------------ nested archives
def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def nested(**changes: bytes) -> bytes:
    """COCO's archive, with files of the archive for val changed."""
    files = {}
    for split, first in (("val", 1), ("train", 3)):
        names = [f"{number:012d}" for number in (first, first + 1)]
        inner = {f"panoptic_{split}2017/{name}.png": png(int(name)) for name in names}
        inner[f"__MACOSX/panoptic_{split}2017/._{names[0]}.png"] = b"junk"
        if split == "val":
            inner.update(changes)
        files[f"annotations/panoptic_{split}2017.json"] = json.dumps(panoptic(*names)).encode()
        files[f"annotations/panoptic_{split}2017.zip"] = archive(inner)
    return archive(files)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/panoptic_annotations_trainval2017.zip").write_bytes(nested())
    return tmp_path / "coco"


def test_zips(coco: Path, prepare: Run, document: Callable, capsys: Any) -> None:
    assert prepare(ZIPS) == 0
    files = {str(path.relative_to(coco)) for path in coco.rglob("*") if path.is_file()}
    assert files == {
        "panoptic_annotations_trainval2017.zip",
        "annotations/panoptic_val2017.json",
        "annotations/panoptic_train2017.json",
        *(f"panoptic_val2017/{number:012d}.png" for number in (1, 2)),
        *(f"panoptic_train2017/{number:012d}.png" for number in (3, 4)),
    }
    assert all((coco / f"panoptic_val2017/{n:012d}.png").read_bytes() == png(n) for n in (1, 2))
    assert document(coco / "annotations/panoptic_train2017.json") == panoptic("000000000003", "000000000004")

    changed = coco / "panoptic_val2017/000000000002.png"
    changed.write_bytes(bytes(len(png(2))))  # the right size, but other bytes
    (coco / "panoptic_val2017/000000000001.png").unlink()
    capsys.readouterr()
    assert prepare(ZIPS, "--splits", "val") == 0
    assert "panoptic_val2017: 1 written, 0 already there, 1 repaired" in capsys.readouterr().out
    assert changed.read_bytes() == png(2)
    assert prepare(ZIPS) == 0
    assert "panoptic_train2017: 0 written, 2 already there, 0 repaired" in capsys.readouterr().out


def test_half_unpacked_by_hand(coco: Path, prepare: Run) -> None:
    with zipfile.ZipFile(coco / "panoptic_annotations_trainval2017.zip") as file:
        file.extractall(coco)
    (coco / "panoptic_annotations_trainval2017.zip").unlink()
    assert prepare(ZIPS, "--splits", "val") == 0
    assert (coco / "panoptic_val2017/000000000001.png").read_bytes() == png(1)
    assert (coco / "annotations/panoptic_val2017.zip").is_file()  # not ours to remove


@pytest.mark.parametrize("name", ["panoptic_val2017/../../../000000000009.png", "/tmp/000000000009.png", "..\\9.png"])
def test_zips_that_lead_out_of_the_directory(coco: Path, prepare: Run, capsys: Any, name: str) -> None:
    (coco / "panoptic_annotations_trainval2017.zip").write_bytes(nested(**{name: png(9)}))
    before = {path for path in coco.parent.parent.rglob("*9.png")}
    assert prepare(ZIPS, "--splits", "val") == 1
    assert "leads out of the target directory" in capsys.readouterr().err
    assert {path for path in coco.parent.parent.rglob("*9.png")} == before
    assert not (coco / "panoptic_val2017").exists() and not list(coco.glob(".*.tmp"))


def test_damaged_and_missing(coco: Path, prepare: Run, capsys: Any) -> None:
    path = coco / "panoptic_annotations_trainval2017.zip"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert prepare(ZIPS) == 1
    assert "the download is incomplete, download it again" in capsys.readouterr().err
    path.unlink()
    assert prepare(ZIPS) == 1
    assert "has neither panoptic_annotations_trainval2017.zip nor panoptic_val2017.json" in capsys.readouterr().err


def test_image_that_the_archive_lacks(coco: Path, prepare: Run, capsys: Any) -> None:
    content = panoptic("000000000001", "000000000002", "000000000077")
    with zipfile.ZipFile(coco / "panoptic_annotations_trainval2017.zip") as file:
        inner = file.read("annotations/panoptic_val2017.zip")
    files = {"panoptic_val2017.json": json.dumps(content).encode(), "panoptic_val2017.zip": inner}
    (coco / "panoptic_annotations_trainval2017.zip").write_bytes(archive(files))
    assert prepare(ZIPS, "--splits", "val") == 1
    shown = capsys.readouterr()
    assert "2 written, 0 already there, 0 repaired, 1 failed" in shown.out
    assert "000000000077.png: named in" in shown.err
