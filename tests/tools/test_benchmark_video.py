"""The benchmark of long videos, on a short one with a small network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import benchmark
import pytest

from ..modeling.tiny_models import TINY


def test_numbers_of_a_short_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["--frames", "14", "--window", "6", "--overlap", "2", "--size", "48", "64", "--device", "cpu"]
    config = ["--config-file", "youtubevis_2019/swin/video_maskformer2_swin_tiny_bs16_8ep.yaml"]
    options = [*TINY, "INPUT.MIN_SIZE_TEST", 32]
    file = tmp_path / "video.json"
    command = ["benchmark.py", "video", *sizes, *config, "--json", str(file), "--opts", *map(str, options)]
    monkeypatch.setattr("sys.argv", command)
    assert benchmark.main() == 0
    printed = capsys.readouterr().out
    assert "14 frames 64x48, 43x32 in the network; windows of 6, 2 shared; fp32" in printed
    assert re.search(r"^3 windows, [\d.]+ s, [\d.]+ frames/s$", printed, re.MULTILINE)
    assert re.search(r"after frame: 6: [\d.]+ GiB, 10: [\d.]+ GiB, 14: [\d.]+ GiB$", printed, re.MULTILINE)
    tracks, shown = re.search(r"(\d+) tracks; journal .* of (\d+) tracks", printed).groups()  # type: ignore[union-attr]
    assert int(tracks) >= 10 and int(shown) >= 1
    (row,) = json.loads(file.read_text())["rows"]
    figures = {figure["name"]: figure for figure in row["figures"]}
    assert figures["time"]["samples"] == 3 and figures["frames"]["unit"] == "frames/s"
