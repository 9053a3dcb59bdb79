"""Figures, rows and the JSON of a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mask2former.benchmark.floor import Cost, Peaks
from mask2former.benchmark.measure import Activity
from mask2former.benchmark.report import Figure, Report, command_line, step_row


def test_a_figure_has_median_and_quartiles() -> None:
    found = Figure.of("time", [4.0, 1.0, 2.0, 3.0, 10.0], "ms")
    assert (found.value, found.quartiles, found.minimum, found.samples) == (3, (2, 4), 1, 5)
    assert str(found) == "time 3 ms (2 to 4)"
    assert Figure.of("time", [2.5], "ms") == Figure("time", 2.5, "ms")


def test_a_step_with_its_floor() -> None:
    row = step_row(
        "network",
        [0.02, 0.01, 0.03],
        images=4,
        memory=2**29,
        activity=Activity(100, 2, 90, 1, 0.008),
        cost=Cost(int(1e9), int(1e6)),
        peaks=Peaks(1e12, 1e9, "table"),
    )
    values = {(figure.name, figure.unit): figure.value for figure in row.figures}
    expected = {
        ("time", "ms"): 20,
        ("images", "images/s"): 200,
        ("peak memory", "GiB"): 0.5,
        ("kernels", ""): 100,
        ("copies", ""): 2,
        ("launches", ""): 90,
        ("host waits", ""): 1,
        ("GPU busy", "%"): 40,
        ("floor of FLOPs", "ms"): 1,
        ("floor of bytes", "ms"): 1,
        ("share of the floor", "%"): 5,
    }
    assert values == {key: pytest.approx(value) for key, value in expected.items()}


def test_the_file_says_where_the_time_of_the_gpu_goes() -> None:
    activity = Activity(3, 0, 1, 0, 0.004, {"convolutions": 0.003, "optimizer": 0.001}, [("conv", 0.003, 2.0)])
    row = step_row("training step", [0.02], activity=activity)
    assert row.to_json()["gpu"] == {
        "kinds": {"convolutions": 3.0, "optimizer": 1.0},
        "longest": [{"name": "conv", "ms": 3.0, "count": 2.0}],
    }
    assert "convolutions 3, optimizer 1" in str(row)
    assert "gpu" not in step_row("network", [0.5]).to_json()


def test_the_file_says_what_the_figures_belong_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tools/benchmark.py", "infer", "--json", "x.json", "--batch", "2"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    report = Report("infer", "a title", {"batch": 2}, torch.device("cpu"), Peaks(2e12, 1e9, "measured"))
    report.rows.append(step_row("network", [0.5]))
    report.write(tmp_path / "x.json", "before")
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["schema"] == 1 and content["label"] == "before"
    assert content["command"] == "python tools/benchmark.py infer --batch 2"
    assert content["hardware"]["threads"] == torch.get_num_threads() and content["hardware"]["device"]
    assert content["versions"]["torch"] == torch.__version__
    assert content["counts_graphs"] is True
    assert content["date"].startswith("20") and content["date"].endswith("+00:00")
    assert content["rows"] == [{"name": "network", "figures": [{"name": "time", "value": 500, "unit": "ms"}]}]
    assert content["peaks"]["flops"] == {"value": 2, "unit": "TFLOP/s"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_the_command_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/lib/mask2former/__main__.py", "benchmark", "--label", "a b", "--bf16"])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert command_line() == "OMP_NUM_THREADS=2 mask2former benchmark --bf16"
