"""`mask2former check` and `mask2former split` as a user calls them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mask2former.cli import check, split
from mask2former.data import register_all, register_coco_json
from mask2former.data.formats import load_data
from tests.data.formats import samples


@pytest.fixture(autouse=True)
def _default_root() -> Iterator[None]:
    yield
    register_all()


def run(module: object, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return module.run(parser.parse_args([str(argument) for argument in arguments]))  # type: ignore[attr-defined]


def test_check_with_sheet_and_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples.write_yolo(tmp_path / "in", samples.sample(0, images=8))
    sheet, out = tmp_path / "sheet.jpg", tmp_path / "out"
    status = run(check, tmp_path / "in", "--output", sheet, "--write", out, "--workers", 1)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "format yolo" in printed and "debris" in printed and Image.open(sheet).size[0] > 400
    before, after = (load_data(tmp_path / name)["train"] for name in ("in", "out"))
    for key in ("images", "annotations", "categories"):
        assert after.content[key] == before.content[key]
    assert after.image_root == before.image_root


def test_check_never_replaces_annotations(tmp_path: Path) -> None:
    samples.write_coco(tmp_path, samples.sample(0, images=2))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert files and all(path.parent.name == "annotations" for path in files)
    with pytest.raises(ValueError, match="annotations exists, so nothing is written there"):
        run(check, tmp_path, "--write", tmp_path, "--workers", 1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == files


def test_check_fails_on_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples.write_yolo(tmp_path, samples.sample(0))
    (tmp_path / "labels" / "train" / "im0.txt").write_text("0 0.1 nan 0.2 0.2 0.3 0.3\n")
    assert run(check, tmp_path, "--workers", 1) == 1
    assert "im0.txt: line 1: contains NaN" in capsys.readouterr().out
    for path in (tmp_path / "labels" / "train").iterdir():
        path.write_text("0 0.5 0.5 0.1 0.1\n")
    assert run(check, tmp_path, "--workers", 1, "--output", tmp_path / "sheet.png") == 1
    assert "are boxes" in capsys.readouterr().out and not (tmp_path / "sheet.png").exists()


def test_check_of_registered_and_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples.write_coco(tmp_path, samples.sample(0))
    register_coco_json("check_cli_cells", tmp_path / "annotations" / "instances.json", tmp_path / "images")
    assert run(check, "check_cli_cells", "--workers", 1) == 0
    assert "check_cli_cells: instance dataset, 2 classes" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="Did you mean 'check_cli_cells'"):
        run(check, "check_cli_cell")


@pytest.mark.parametrize("copy", [False, True])
def test_split_writes_parts(tmp_path: Path, copy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    samples.write_labelme(tmp_path / "in", samples.sample(0, images=10))
    out = tmp_path / "out"
    options = ["--copy"] if copy else []
    assert run(split, tmp_path / "in", out, "--val", 0.2, "--test", 0.1, *options) == 0
    assert "val: 2 images" in capsys.readouterr().out
    parts = load_data(out)
    assert {name: len(part.content["images"]) for name, part in parts.items()} == {"train": 7, "val": 2, "test": 1}
    assert all(part.image_root == (out / "images" if copy else tmp_path / "in") for part in parts.values())
    with pytest.raises(ValueError, match="not an empty directory"):
        run(split, tmp_path / "in", out)
    with pytest.raises(ValueError, match="is divided already, into train, val, test"):
        run(split, out, tmp_path / "again")
    with pytest.raises(ValueError, match="nothing to divide"):
        run(split, tmp_path / "in", tmp_path / "again", "--val", 0)


def test_descriptions() -> None:
    for module in (check, split):
        assert module.HELP and "examples:" in module.DESCRIPTION


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["coco_2017_val", "--queries", "5"], "--queries"), (["coco_2017_val", "--write", "x"], "--write")],
)
def test_arguments_that_a_registered_dataset_would_ignore(arguments: list[str], option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is for directories and files"):
        run(check, *arguments)


@pytest.mark.parametrize(
    ("output", "told"),
    [("sheet.xyz", "give an image file"), ("there", "give an image file"), ("d.png", "directory"), ("no/s.png", "no")],
)
@pytest.mark.parametrize("data", [".", "coco_2017_val"])
def test_a_contact_sheet_that_cannot_be_written_is_told_at_once(
    data: str, output: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the data is read: the directory has none, which would be the first error."""
    monkeypatch.chdir(tmp_path)
    Path("d.png").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=f"--output {output}.*{told}"):
        run(check, data, "--output", output)
