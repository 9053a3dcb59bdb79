"""`mask2former benchmark` prints times with what they belong to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mask2former.cli import main
from mask2former.cli.benchmark import _config_of

from ..modeling.tiny_models import TINY

CONFIG = "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_times_are_printed_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str], train: bool) -> None:
    size = ["--size", "64", "64", "--repeats", "2", "--device", "cpu", "--json", str(tmp_path / "found.json")]
    kind = ["--train", "--objects", "2"] if train else []
    options = ["--opts", *map(str, TINY)]
    assert main(["benchmark", "--config-file", CONFIG, *size, *kind, *options]) == 0
    out = capsys.readouterr().out
    assert "1 x 64 x 64, fp32" in out and "torch " in out and "mask2former 0" in out
    row = "training step" if train else "network and results"
    number = r"[\d.]+"
    spread = rf"\({number} to {number}\)"
    pattern = rf"^{row} +time {number} ms {spread}, images {number} images/s {spread}$"
    assert re.search(pattern, out, re.MULTILINE)
    assert re.search(rf"^ +peak memory {number} GiB, floor of FLOPs {number} ms", out, re.MULTILINE)
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["benchmark"] == ("train" if train else "infer") and content["rows"][1]["name"] == row


def test_the_included_model_is_the_default() -> None:
    assert _config_of(None).is_file()


def test_a_video_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--model", "ytvis2019-r50"]) == 2
    assert "tools/benchmark.py video" in capsys.readouterr().err
