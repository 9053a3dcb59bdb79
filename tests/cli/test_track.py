"""`mask2former track`: files, arguments and errors; the run itself is tested with the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mask2former.cli import main
from mask2former.segmenter import Segmenter
from mask2former.video.results import VideoResult

from ..video.moving_shapes import ShapeModel, images
from .conftest import names


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Use the model of moving squares, and write a directory of frames."""
    monkeypatch.chdir(tmp_path)

    def load(*_: Any, **options: Any) -> Segmenter:
        threshold = options.get("score_threshold", 0.5)
        return Segmenter(ShapeModel(), classes=["a", "b", "c"], min_size=0, score_threshold=threshold)

    monkeypatch.setattr(Segmenter, "load", load)
    for i, image in enumerate(images(12)):
        path = Path("clip") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return "clip"


def test_tracks_to_the_default_output(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    assert main(["track", clip]) == 0
    assert names("output/track") == {"clip_segmented.mp4", "results.json"}
    assert len(json.loads(Path("output/track/results.json").read_text())) == 3
    assert "12 frames of clip" in capsys.readouterr().out


def test_parts_and_counts_reach_the_api(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that are given."""
    asked: list[dict[str, Any]] = []
    track = Segmenter.track

    def tracked(self: Segmenter, video: Any, **options: Any) -> VideoResult:
        part = {name: options.pop(name) for name in ("start", "end", "every") if name in options}
        asked.append(part)
        return track(self, video, **options)

    monkeypatch.setattr(Segmenter, "track", tracked)
    part = ["--start", "1:30", "--end", "120f", "--every", "5"]
    tables = ["--counts", "numbers.csv", "--tracks", "of tracks.csv"]  # any name
    assert main(["track", clip, "--output", "r.json", *part, *tables]) == 0
    assert asked == [{"start": "1:30", "end": "120f", "every": 5}]
    numbers = Path("numbers.csv").read_text()
    assert numbers.startswith("frame,seconds,") and len(numbers.split()) > 12
    assert Path("of tracks.csv").read_text().startswith("id,class,score,")
    assert main(["track", clip, "--output", "r.json"]) == 0
    assert asked[1] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clpi"], "clpi does not exist. Did you mean 'clip'?"),
        (["clip", "--counts", "counts.txt"], "must end with .csv"),
        (["/dev/null"], "/dev/null is a pipe or device"),
        (["/dev/null", "/dev/null"], "/dev/null is a pipe or device"),
        (["clip", "--counts", "t.csv", "--tracks", "t.csv"], "--counts and --tracks are the same file"),
        (["clip", "--output", "o.avi"], "cannot end with .avi; give .json, .mkv, .mov, .mp4, or a directory"),
        (["clip", "--output", "o.mp4", "--save", "json"], "drop --save"),
        (["clip", "--every", "0"], "must be at least 1"),
    ],
)
def test_mistakes_are_explained(
    clip: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["track", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err


def test_the_way_to_run_the_network_reaches_the_model(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    load = Segmenter.load
    monkeypatch.setattr(Segmenter, "load", lambda *a, **o: (loaded.append(o.get("compile")), load(*a, **o))[1])
    assert main(["track", clip, "--output", "r.json", "--compile", "graph"]) == 0
    assert loaded == ["graph"]
