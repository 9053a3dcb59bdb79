"""`mask2former models`: the list, its filters, one model, and which weights are on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mask2former import zoo
from mask2former.cli import main


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path / "weights"))


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["models", "--json", *arguments]) == 0
    return [model["name"] for model in json.loads(capsys.readouterr().out)]


def test_all_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in zoo.list_models())
    assert all(f"'{name}'" in out for name in zoo.list_bundled())
    assert "PQ 51.9, AP 41.7, mIoU 61.7" in out and f"{len(zoo.list_models())} models" in out


def test_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, "--task", "panoptic", "--dataset", "coco", "--filter", "R10") == ["coco-panoptic-r101"]
    videos = listed(capsys, "--task", "video")
    assert "shapes-video" in videos and all(name.startswith(("ytvis", "shapes")) for name in videos)
    assert main(["models", "--task", "detection"]) == 2
    assert "choose from" in capsys.readouterr().err


def test_weights_on_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file is looked for where `resolve_weights` takes it from; nothing is downloaded or verified."""
    assert listed(capsys, "--here") == zoo.list_bundled()
    entry = zoo.lookup("coco-panoptic-r50")
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / entry.filename
    file.write_bytes(b"weights")
    assert listed(capsys, "--here") == ["coco-panoptic-r50", *zoo.list_bundled()]
    assert zoo.local_weights("coco-panoptic-r50") == file
    converted = tmp_path / "weights" / "coco-panoptic-r101.safetensors"
    converted.write_bytes(b"weights")
    assert zoo.local_weights("coco-panoptic-r101") == converted


def test_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "Coco_Panoptic_Swin_T"]) == 0
    out = capsys.readouterr().out
    for part in ("PQ 53.2", "CC BY-NC 4.0", "no, downloaded when", "predict photo.jpg --model coco-panoptic-swin-t"):
        assert part in out
    assert main(["models", "ytvis2019-r50"]) == 0
    assert "mask2former track clip.mp4 --model ytvis2019-r50" in capsys.readouterr().out
