"""`mask2former benchmark` prints times with what they belong to."""

from __future__ import annotations

import re

import pytest

from mask2former.cli import main

from ..modeling.tiny_models import TINY

CONFIG = "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_times_are_printed(capsys: pytest.CaptureFixture[str], train: bool) -> None:
    size = ["--size", "64", "64", "--repeats", "1", "--device", "cpu"]
    kind = ["--train", "--objects", "2"] if train else []
    options = ["--opts", *map(str, TINY)]
    assert main(["benchmark", "--config-file", CONFIG, *size, *kind, *options]) == 0
    out = capsys.readouterr().out
    assert "1 x 64 x 64, fp32" in out and "torch " in out and "mask2former 0" in out
    row = "forward, losses, backward" if train else "network and post-processing"
    assert re.search(rf"^{row} +median +[\d.]+ ms, min +[\d.]+ ms, +[\d.]+ images/s$", out, re.MULTILINE)


def test_a_video_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--model", "ytvis2019-r50"]) == 2
    assert "tools/benchmark.py video" in capsys.readouterr().err
