"""`mask2former data shapes` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.cli import main


def test_a_small_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shapes"
    arguments = ["data", "shapes", str(out), "--images", "3", "--size", "40x56", "--objects", "2-4", "--seed", "2"]
    arguments += ["--frames", "2", "--classes", "ring,star,sky,sand", "--workers", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "train: 3 images" in printed.out and "val: 1 images" in printed.out and "train: 1 clips" in printed.out
    assert "train images: 100%" in printed.err  # the progress bar
    with Image.open(out / "images/train/000002.jpg") as image:
        assert image.size == (56, 40)
    assert main(["check", str(out), "--workers", "1"]) == 0
    assert "format coco" in capsys.readouterr().out
    assert main([*arguments[:-2], "--workers", "1"]) == 0  # again: nothing to do, and no error
    assert main(["data", "shapes", str(out), "--images", "3"]) == 2
    assert "choose another directory or remove it" in capsys.readouterr().err


def test_validation_clips_alone_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a model is scored on needs no training clips; the commands that read images say that there are none."""
    out = tmp_path / "shapes"
    arguments = ["--images", "0", "--clips", "0", "--val-clips", "2", "--frames", "3", "--size", "48", "--workers", "1"]
    assert main(["data", "shapes", str(out), *arguments]) == 0
    assert [path.name for path in (out / "videos").glob("*.json")] == ["val.json"]
    assert len(list((out / "videos" / "val" / "JPEGImages").rglob("*.jpg"))) == 6
    assert "mask2former check" not in capsys.readouterr().out
    assert main(["check", str(out)]) == 1
    assert "val.json: holds videos (YouTube-VIS), not images" in "".join(capsys.readouterr())


def test_a_preview_needs_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["data", "shapes", "--preview", str(sheet), "--size", "48"]) == 0
    assert "Contact sheet" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.size[0] > 900 and np.asarray(image).std() > 30
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "where to? Give OUT"),
        (["--preview", "x.jpg", "--images", "5"], "--images has no effect without OUT"),
        (["out", "--clips", "0", "--frames", "4"], "--frames has no effect without clips"),
        (["--preview", "x.jpg", "--val-clips", "5"], "--val-clips has no effect without OUT"),
        (["--preview", "x.txt"], "give an image file"),
        (["out", "--preview", "x.txt"], "give an image file"),
        (["out", "--size", "wide"], "not a size such as"),
        (["out", "--objects", "1-2-3"], "not a range such as"),
        (["out", "--classes", "disc,sky"], "did you mean"),
        (["out", "--imagse", "3"], "did you mean"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "shapes", *arguments]) == 2
    assert message.lower() in capsys.readouterr().err.lower()
    assert not list(tmp_path.iterdir())
