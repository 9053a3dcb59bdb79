"""`tools/benchmark.py`: its parts, and arguments that a part does not have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import benchmark
import pytest
import torch

from mask2former.benchmark.floor import Peaks

from ..modeling.tiny_models import TINY

CONFIG = "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "--dense"], "--dense"),
        (["infer", "--uneven"], "--uneven"),
        (["model", "--objects", "3"], "--objects"),
        (["op", "--bf16"], "--bf16"),
        (["infer", "--channels", "16"], "--channels"),
        (["eval", "--compare", "huggingface"], "--compare"),
        (["infer", "--ranks", "3"], "--ranks"),
        (["video", "--compile", "off"], "--compile"),
        (["sizes", "--batch", "2"], "--batch"),
    ],
)
def test_unused_arguments_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], name: str) -> None:
    assert benchmark.main([*arguments, "--device", "cpu"]) == 2
    assert f"{name} has no effect on" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--images", "0"], ["--size", "0", "64"], ["--batch", "0"], ["--repeats", "-1"]])
def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["infer", *arguments])
    assert f"{arguments[0]}: must be at least 1" in capsys.readouterr().err


def test_a_part_that_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert benchmark.main(["data", "--device", "cpu"]) == 2
    assert "tools/benchmark_data.py" in capsys.readouterr().err


def test_figures_of_the_mapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ModuleType("benchmark_data")
    figures = {"read": 2.0, "read, plain": 5.0, "mapper": 8.0}
    part.CONFIG, part.run = "a.yaml", lambda args, about: figures if args.images == 40 else {}  # type: ignore[attr-defined]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "benchmark_data", part)
    assert benchmark.main(["data", "--device", "cpu", "--json", str(tmp_path / "data.json")]) == 0
    content = json.loads((tmp_path / "data.json").read_text())
    read, mapper = ({f["name"]: f["value"] for f in row["figures"]} for row in content["rows"])
    assert read == {"time": 2, "time of the plain way": 5, "ratio": 2.5}
    assert mapper["time"] == 8 and content["settings"]["config"] == "a.yaml"


def test_deformable_attention(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    measured = Peaks.of
    monkeypatch.setattr(Peaks, "of", lambda device, bf16: asked.append(bf16) or measured(device, bf16))
    file = tmp_path / "op.json"
    command = ["op", "--size", "32", "32", "--repeats", "3", "--channels", "16", "--device", "cpu", "--json", str(file)]
    assert benchmark.main(command) == 0
    report = json.loads(file.read_text())
    assert report["settings"]["channels"] == 16 and report["title"].endswith("8 heads of 16 channels")
    inputs = benchmark.benchmark_op.Inputs.make(32, 1, 16, torch.float32, torch.device("cpu"), seed=0)
    assert inputs.value.shape[2:] == (8, 16) and inputs.grad.shape[2] == 8 * 16
    rows = {row["name"]: {f["name"]: f for f in row["figures"]} for row in report["rows"]}
    fused = rows["forward + backward, float32: this op, fused"]
    base = rows["forward + backward, float32: PyTorch chain"]
    assert fused["ratio"]["value"] == pytest.approx(base["time"]["value"] / fused["time"]["value"])
    assert fused["time"]["samples"] == 3 and fused["floor of bytes"]["value"] > 0
    assert "this op, fused         float32" in capsys.readouterr().out
    assert asked == [False]  # the rows of a CPU are float32


@pytest.mark.slow
def test_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    file, size = tmp_path / "scale.json", ["--size", "64", "64", "--objects", "2", "--repeats", "2"]
    command = ["scale", "--ranks", "2", "--device", "cpu", *size, "--config-file", CONFIG, "--json", str(file)]
    assert benchmark.main([*command, "--opts", *map(str, TINY)]) == 0
    content = json.loads(file.read_text())
    one, two = ({f["name"]: f["value"] for f in row["figures"]} for row in content["rows"])
    assert [row["name"] for row in content["rows"]] == ["1 rank", "2 ranks"]
    assert content["title"].endswith(", 10 steps in a row") and content["settings"]["steps in a row"] == 10
    assert one["efficiency"] == 100
    assert two["efficiency"] == pytest.approx(two["images"] / 2 / one["images"] * 100)
