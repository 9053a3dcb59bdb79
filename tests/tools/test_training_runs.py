"""Trainings of a comparison that share a device: their minutes, workers and directories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import compare_recipes
import pytest
import training_runs
from stand_in_trainings import programs
from training_matrix import Matrix, read_matrix
from training_reports import Point, curve, read_metrics, steady_seconds

from mask2former.config import load_config

ROOT = Path(__file__).parents[2]
ONE_VARIANT = """\
title: "One variant"
metric: panoptic_seg/PQ
device: cpu
seeds: [0, 1]
budget: {minutes: 1}
evaluations: 2
variants:
  tiny: {config: configs/shapes/panoptic_tiny.yaml, overrides: {MODEL.TIMM.WEIGHTS: "{datasets}/w.pth"}}
"""


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    (tmp_path / "m.yaml").write_text(ONE_VARIANT)
    return read_matrix(tmp_path / "m.yaml")


def console(training: training_runs.Training) -> str:
    return (training.directory / "console.txt").read_text()


def test_runs_share_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four wait for each other on two GPUs; the fifth comes later, when it may have one for itself."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(training_runs.os, "sched_getaffinity", lambda pid: range(8), raising=False)
    code = (
        "import glob, os, time\nopen({own!r}, 'w').close()\n"
        f"while len(glob.glob({str(tmp_path / 'flag*')!r})) < 4: time.sleep(0.01)\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    )
    codes = [code.format(own=str(tmp_path / f"flag{i}")) for i in range(5)]
    trainings = programs(tmp_path, *codes)
    assert training_runs.run_all(trainings, ["4", "7"], tmp_path, per_device=2) == []
    assert [console(training).split()[0] for training in trainings[:4]] == ["4", "7", "4", "7"]
    assert {console(training).split()[1] for training in trainings} == {"2"}
    assert [training.most_on_device for training in trainings[:4]] == [2] * 4


def test_a_device_for_each_run_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os\nprint(os.environ.get('OMP_NUM_THREADS'))"
    trainings = programs(tmp_path, code, code, code)
    assert training_runs.run_all(trainings, ["4", "7"], tmp_path) == []
    assert [console(training) for training in trainings] == ["None\n"] * 3
    assert [training.most_on_device for training in trainings] == [1, 1, 1]
    assert not list(tmp_path.glob("*/shared.json"))


def test_all_runs_of_a_device_are_stopped(tmp_path: Path) -> None:
    code = "import signal, time, os\nsignal.signal(15, lambda *_: (print('saved', flush=True), os._exit(143)))\n"
    trainings = programs(tmp_path, *[code + "print('ready', flush=True)\ntime.sleep(600)"] * 2)

    def end_when_ready(running: object) -> None:
        if all("ready" in console(training) for training in trainings):
            os.kill(os.getpid(), 15)  # which `run_all` takes as the wish to stop

    with pytest.raises(training_runs.Stopped):
        training_runs.run_all(
            trainings, [None], tmp_path, per_device=2, end=time.monotonic() + 60, on_wait=end_when_ready
        )
    assert [console(training).split() for training in trainings] == [["ready", "saved"]] * 2
    # Alone later: its times were shared before.
    again = programs(tmp_path, "print('done')")[0]
    assert training_runs.run_all([again], [None], tmp_path) == []
    assert again.finished and again.most_on_device == 2


def test_most_runs_on_a_device_are_noted(tmp_path: Path) -> None:
    (training,) = programs(tmp_path, "pass")
    training.prepare()
    for runs, most in ((1, 1), (3, 3), (2, 3), (1, 3)):
        training.share(runs)
        assert training.most_on_device == most


def test_workers_are_bounded_and_not_part_of_the_plan(matrix: Matrix, tmp_path: Path) -> None:
    """Else a comparison could not be continued on a machine with other cores."""

    def of(workers: int | None) -> training_runs.Training:
        return training_runs.training_of(matrix, matrix.variants[0], 0, 40, tmp_path, workers)

    alone = load_config("configs/shapes/panoptic_tiny.yaml").DATALOADER.NUM_WORKERS
    assert alone == 1
    assert [of(workers).cfg.DATALOADER.NUM_WORKERS for workers in (None, 8, 1)] == [1, 1, 1]
    assert "DATALOADER.NUM_WORKERS" not in of(None).overrides and "DATALOADER.NUM_WORKERS" in of(1).overrides
    of(1).prepare()
    of(None).prepare()
    plan = tmp_path / "tiny" / "seed0" / "plan.json"
    values = json.loads(plan.read_text())
    assert "DATALOADER.NUM_WORKERS" not in values
    plan.write_text(json.dumps({**values, "DATALOADER.NUM_WORKERS": "4"}))  # of an earlier version
    of(1).prepare()


@pytest.mark.parametrize(("cores", "runs", "each"), [(32, 8, 4), (16, 6, 2), (2, 8, 1)])
def test_cores_of_each(cores: int, runs: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runs.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    assert training_runs.cores_of_each(runs) == each


def test_an_override_may_name_the_directory_of_the_datasets(tmp_path: Path) -> None:
    (training,) = programs(tmp_path, "print('{datasets}/w.pth')")
    assert training_runs.run_all([training], [None], tmp_path / "data") == []
    assert console(training).strip() == f"{tmp_path}/data/w.pth"


def test_short_budgets_are_not_compiled(tmp_path: Path) -> None:
    text = ONE_VARIANT.replace("device: cpu", "device: cuda").replace("MODEL.TIMM", "SOLVER.MAX_ITER: 9000, MODEL.TIMM")
    for minutes, mode in ((9, "graph"), (10, "compile")):
        (tmp_path / "m.yaml").write_text(text.replace("minutes: 1", f"minutes: {minutes}"))
        matrix = read_matrix(tmp_path / "m.yaml")
        measuring = training_runs.measuring_training(matrix, matrix.variants[0], tmp_path)
        training = training_runs.training_of(matrix, matrix.variants[0], 0, 100, tmp_path)
        assert {measuring.cfg.MODEL.COMPILE, training.cfg.MODEL.COMPILE} == {mode}


ROWS = [
    {"iteration": 19, "time": 9.0},
    {"iteration": 39, "time": 6.0},
    {"iteration": 19, "panoptic_seg/PQ": 10.0},
    {"iteration": 39, "panoptic_seg/PQ": 30.0},
]


def test_minutes_of_a_shared_device_are_those_of_a_run_alone(matrix: Matrix, tmp_path: Path) -> None:
    assert curve(ROWS, "panoptic_seg/PQ", 1.5) == [Point(20, 0.5, 10.0), Point(40, 1.0, 30.0)]
    trainings = compare_recipes._trainings(matrix, {"tiny": 40}, tmp_path)
    for training in trainings:
        training.prepare()
        (training.directory / "metrics.json").write_text("\n".join(map(json.dumps, ROWS)))
        training.finish()
    assert not training_runs.any_shared(matrix, tmp_path)
    report = compare_recipes.make_report(matrix, trainings, {})
    assert report["per_gpu"] == 1
    (variant,) = report["variants"]
    assert [run["evaluations"][-1]["minutes"] for run in variant["runs"]] == [5.0, 5.0]
    trainings[1].share(4)  # the other one had its device for itself
    assert training_runs.any_shared(matrix, tmp_path)
    report = compare_recipes.make_report(matrix, trainings, {"tiny": 1.5})
    assert report["per_gpu"] == 4
    (variant,) = report["variants"]
    assert [run["evaluations"][-1]["minutes"] for run in variant["runs"]] == [5.0, 1.0]


@pytest.mark.slow
def test_a_comparison_with_two_runs_at_once(datasets: Path, tmp_path: Path) -> None:
    """A budget in iterations is measured, too; the same command later leaves all as it is."""
    text = ONE_VARIANT.replace("{minutes: 1}", "{iterations: 20}\nmeasured: 20")
    small = "SOLVER.IMS_PER_BATCH: 2, DATALOADER.NUM_WORKERS: 2, MODEL.MASK_FORMER.TRAIN_NUM_POINTS: 64"
    matrix = tmp_path / "m.yaml"
    matrix.write_text(text.replace('MODEL.TIMM.WEIGHTS: "{datasets}/w.pth"', small))
    command = [sys.executable, str(ROOT / "tools" / "compare_recipes.py"), str(matrix), "--per-gpu", "2"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    for start in (True, False):
        done = subprocess.run(
            [*command, "--output", str(tmp_path)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if "iterations on" in line or "finished" in line]
        parts = [line.split(": ")[0] for line in lines]
        assert parts[:4] == (["tiny, its speed"] * 2 + ["tiny, seed 0", "tiny, seed 1"]) * start
        report = json.loads((tmp_path / "report.json").read_text())
        seconds = steady_seconds(read_metrics(tmp_path / "tiny" / "speed" / "metrics.json"))
        assert report["per_gpu"] == 2
        for run in report["variants"][0]["runs"]:
            assert [point["minutes"] for point in run["evaluations"]] == [10 * seconds / 60, 20 * seconds / 60]
