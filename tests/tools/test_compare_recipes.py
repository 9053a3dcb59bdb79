"""Comparisons of recipes: matrices, curves, bounds, and trainings as processes that are stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import compare_recipes
import pytest
import training_figure
import training_matrix
import training_reports
import training_runs
from stand_in_trainings import programs
from training_matrix import read_matrix
from training_reports import Point

ROOT = Path(__file__).parents[2]
MATRICES = sorted((ROOT / "docs" / "training").glob("*.yaml"))

SMALL = """\
title: "Two learning rates"
metric: panoptic_seg/PQ
device: cpu
seeds: [0]
budget: {iterations: 20}
evaluations: 2
reference: slow
needs: [shapes/annotations/panoptic_train.json]
overrides: {SOLVER.IMS_PER_BATCH: 2, DATALOADER.NUM_WORKERS: 0, MODEL.MASK_FORMER.TRAIN_NUM_POINTS: 64}
variants:
  fast: {config: configs/shapes/panoptic_tiny.yaml}
  slow: {config: configs/shapes/panoptic_tiny.yaml, overrides: {SOLVER.BASE_LR: 0.0001}}
"""


def write(path: Path, text: str = SMALL) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_stored_matrices_are_right(path: Path, tmp_path: Path) -> None:
    """The settings of each variant exist, and its schedule fits to another length."""
    matrix = read_matrix(path)
    for variant in matrix.variants:
        training = training_runs.training_of(matrix, variant, 1, 1000, tmp_path)
        assert training.cfg.SOLVER.MAX_ITER == 1000 and training.cfg.SEED == 1
        assert all(step < 1000 for step in training.cfg.SOLVER.STEPS) and training.cfg.SOLVER.WARMUP_ITERS <= 100
        assert not training.cfg.MODEL.WEIGHTS
        assert training_runs.measuring_training(matrix, variant, tmp_path).cfg.DATASETS.TEST == ()


def test_variants_of_a_matrix_share_its_overrides(tmp_path: Path) -> None:
    fast, slow = read_matrix(write(tmp_path / "m.yaml")).variants
    assert fast.overrides["SOLVER.IMS_PER_BATCH"] == slow.overrides["SOLVER.IMS_PER_BATCH"] == "2"
    assert slow.overrides["SOLVER.BASE_LR"] == "0.0001" and "SOLVER.BASE_LR" not in fast.overrides


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("budget: {iterations: 20}", "budget: {}", "one of 'minutes' and 'iterations'"),
        ("budget: {iterations: 20}", "budget: {iterations: 2, minutes: 1}", "one of 'minutes' and 'iterations'"),
        ("budget: {iterations: 20}", "budget: {minutes: -1}", "'budget.minutes' is '-1'"),
        ("seeds: [0]", "seeds: [0, 0]", "each once"),
        ("seeds: [0]", "seeds: 0", "a list of whole numbers"),
        ("reference: slow", "reference: slwo", "Did you mean 'slow'"),
        ("evaluations: 2", "evaluatoins: 2", "unknown key 'evaluatoins'. Did you mean 'evaluations'"),
        ("device: cpu", "device: tpu", "must be cuda or cpu"),
        ("metric: panoptic_seg/PQ", "", "'metric' is missing"),
        ("  fast:", "  ../fast:", "small letters"),
        ("{config: configs/shapes/panoptic_tiny.yaml}", "{}", "'variants.fast.config' is missing"),
        ("variants:", "bound: {variant: fast}\nvariants:", "one of 'at_least' and 'margin'"),
    ],
)
def test_mistakes_in_a_matrix_are_named(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in SMALL
    with pytest.raises(ValueError, match=message):
        read_matrix(write(tmp_path / "m.yaml", SMALL.replace(before, after)))


def test_a_matrix_names_a_config_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="panoptic_tny"):
        read_matrix(write(tmp_path / "m.yaml", SMALL.replace("panoptic_tiny", "panoptic_tny")))


def test_steps_of_the_learning_rate_keep_their_place() -> None:
    assert training_runs.scaled_steps((327778, 355092), 368750, 1000) == (889, 963)
    assert training_runs.scaled_steps((9, 10), 10, 2) == ()  # both would be at the end
    assert training_runs.scaled_steps((), 10, 2) == ()


def test_a_schedule_follows_the_length(tmp_path: Path) -> None:
    matrix = read_matrix(write(tmp_path / "m.yaml"))
    cfg = training_runs.training_of(matrix, matrix.variants[0], 3, 200, tmp_path).cfg
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD, cfg.SEED) == (200, 20, 100, 3)
    assert cfg.MODEL.DEVICE == "cpu" and Path(cfg.OUTPUT_DIR) == tmp_path / "fast" / "seed3"


def test_what_a_gpu_compiles_does_not_depend_on_the_length(tmp_path: Path) -> None:
    """Else the speed would be measured of other code than that which is compared."""
    text = SMALL.replace("device: cpu", "device: cuda")
    matrix = read_matrix(write(tmp_path / "m.yaml", text))
    short = matrix.variants[0]
    for iterations in (50_000, 100):
        cfg = training_runs.training_of(matrix, short, 0, iterations, tmp_path).cfg
        assert cfg.MODEL.COMPILE == "graph"
    cfg = training_runs.measuring_training(matrix, short, tmp_path).cfg
    assert cfg.MODEL.COMPILE == "graph"
    longer = read_matrix(write(tmp_path / "n.yaml", text.replace("SOLVER.BASE_LR: 0.0001", "SOLVER.MAX_ITER: 9000")))
    assert training_runs.training_of(longer, longer.variants[1], 0, 100, tmp_path).cfg.MODEL.COMPILE == "compile"


ROWS: list[dict[str, Any]] = [
    {"iteration": 19, "time": 3.0, "total_loss": 1.0},
    {"iteration": 39, "time": 1.0},
    {"iteration": 29, "panoptic_seg/PQ": 10.0, "panoptic_seg/PQ_th": 1.0},
    {"iteration": 49, "panoptic_seg/PQ": 30.0},
]


def test_a_curve_has_the_minutes_of_training() -> None:
    """20 iterations of 3 s, then of 1 s, also after the last row."""
    assert training_reports.curve(ROWS, "panoptic_seg/PQ") == [Point(30, 70 / 60, 10.0), Point(50, 90 / 60, 30.0)]
    assert training_reports.steady_seconds(ROWS) == 1.0


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="metric segm/AP; there are: panoptic_seg/PQ, panoptic_seg/PQ_th"):
        training_reports.curve(ROWS, "segm/AP")
    with pytest.raises(ValueError, match="fewer than 20 iterations"):
        training_reports.curve(ROWS[2:], "panoptic_seg/PQ")


def report(**finals: tuple[float, ...]) -> dict[str, Any]:
    """Return a report with one run for each final value, evaluated after one and two minutes."""
    variants = []
    for name, values in finals.items():
        runs = [
            {"seed": seed, "evaluations": [vars(Point(50, 1.0, value / 2)), vars(Point(100, 2.0, value))]}
            for seed, value in enumerate(values)
        ]
        variants.append(
            {"name": name, "config": "c.yaml", "overrides": {}, "batch": 2, "iterations": 100, "runs": runs}
        )
    return {
        "schema": 1,
        "name": "m",
        "title": "Two learning rates",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python tools/compare_recipes.py m.yaml",
        "metric": "panoptic_seg/PQ",
        "reference": "slow",
        "hardware": {"device": "a GPU", "processor": "a CPU", "cores": 4},
        "versions": {"torch": "2.11"},
        "variants": variants,
    }


def test_mean_deviation_and_time_to_the_reference() -> None:
    fast, slow = training_reports.summaries(report(fast=(40.0, 44.0), slow=(28.0,)))
    assert (fast.final, slow.final) == (42.0, 28.0)
    assert fast.final_deviation == pytest.approx(8**0.5) and slow.final_deviation is None
    assert fast.reached == pytest.approx(1 + 7 / 21)  # from 21 to 42 in the second minute
    assert slow.reached == 2.0
    assert training_reports.reaches(fast.mean, 50.0) is None


def test_a_figure_knows_its_report(tmp_path: Path) -> None:
    one, other = report(fast=(40.0, 44.0)), report(fast=(40.0, 45.0))
    training_figure.draw(one, tmp_path / "a.png")
    assert training_figure.is_of(one, tmp_path / "a.png")
    assert not training_figure.is_of(other, tmp_path / "a.png")
    assert not training_figure.is_of(one, tmp_path / "b.png")


@pytest.mark.parametrize(("final", "passed"), [(60.0, True), (59.9, False)])
def test_a_bound_of_the_matrix(final: float, passed: bool, tmp_path: Path) -> None:
    matrix = read_matrix(write(tmp_path / "m.yaml", SMALL + "bound: {variant: fast, at_least: 60}\n"))
    found, text = compare_recipes.verdict(matrix, report(fast=(final,)), None)
    assert found is passed and f"{final:.2f}" in text and "60.00" in text


@pytest.mark.parametrize(("final", "passed"), [(66.0, True), (65.9, False)])
def test_a_bound_of_the_stored_report(final: float, passed: bool, tmp_path: Path) -> None:
    matrix = read_matrix(write(tmp_path / "m.yaml", SMALL + "bound: {variant: fast, margin: 4}\n"))
    assert compare_recipes.stored_report(matrix) is None
    found, text = compare_recipes.verdict(matrix, report(fast=(final,)), None)
    assert found and "Not checked: there is no measured" in text and "m.json" in text
    (tmp_path / "m.json").write_text(json.dumps(report(fast=(70.0,))))
    stored = compare_recipes.stored_report(matrix)
    found, text = compare_recipes.verdict(matrix, report(fast=(final,)), stored)
    assert found is passed and "66.00" in text


def test_a_budget_in_minutes_sets_the_length(tmp_path: Path) -> None:
    matrix = read_matrix(write(tmp_path / "m.yaml", SMALL.replace("{iterations: 20}", "{minutes: 2}")))
    speeds = [training_runs.measuring_training(matrix, variant, tmp_path) for variant in matrix.variants]
    for training, seconds in zip(speeds, (0.5, 60.0), strict=True):
        training.directory.mkdir(parents=True)
        rows = [{"iteration": 19, "time": 99.0}, {"iteration": 39, "time": seconds}]  # the first has the start in it
        (training.directory / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    seconds = compare_recipes._measured_seconds(matrix, speeds)
    assert seconds == {"fast": 0.5, "slow": 60.0}
    assert compare_recipes._iterations(matrix, seconds) == {"fast": 240, "slow": 20}


def test_a_training_that_fails_is_named_and_others_go_on(tmp_path: Path) -> None:
    trainings = programs(tmp_path, "print('no such key'); raise SystemExit(2)", "pass")
    ended: list[str] = []
    failures = training_runs.run_all(trainings, [None], tmp_path, on_end=lambda training: ended.append(training.title))
    (failure,) = failures
    assert "p0 failed with status 2" in failure and "no such key" in failure and "console.txt" in failure
    assert ended == ["p1"] and trainings[1].finished and not trainings[0].finished


def test_each_gpu_has_one_training_at_a_time(tmp_path: Path) -> None:
    """The first waits for the second, so both run at once; the third gets a GPU that is free again."""
    wait = (
        "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)\nprint(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    touch = "import os\nopen({!r}, 'w').close()\nprint(os.environ['CUDA_VISIBLE_DEVICES'])"
    flag = str(tmp_path / "flag")
    trainings = programs(tmp_path, wait.format(flag), touch.format(flag), touch.format(flag))
    assert training_runs.run_all(trainings, ["4", "7"], tmp_path) == []
    used = [(training.directory / "console.txt").read_text().strip() for training in trainings]
    assert used[:2] == ["4", "7"] and used[2] in ("4", "7")
    trainings[0].directory.joinpath("console.txt").unlink()
    assert training_runs.run_all(trainings, ["4"], tmp_path) == []
    assert not trainings[0].directory.joinpath("console.txt").exists()  # finished before: not run again


def test_trainings_are_asked_to_save_when_time_is_over(tmp_path: Path) -> None:
    code = "import os, signal, time\nsignal.signal(15, lambda *_: (print('saved', flush=True), os._exit(143)))\n"
    training, later = programs(tmp_path, code + "print('ready', flush=True)\ntime.sleep(600)", "pass")
    log = training.directory / "console.txt"

    def end_when_ready(running: object) -> None:
        if "ready" in log.read_text():
            os.kill(os.getpid(), signal.SIGTERM)  # which `run_all` takes as the wish to stop

    with pytest.raises(training_runs.Stopped):
        training_runs.run_all([training, later], [None], tmp_path, on_wait=end_when_ready)
    assert log.read_text().split() == ["ready", "saved"] and not training.finished
    with pytest.raises(training_runs.Stopped):
        training_runs.run_all([later], [None], tmp_path, end=time.monotonic())
    assert not (later.directory / "console.txt").exists()


def test_a_restart_removes_runs_and_nothing_else(tmp_path: Path) -> None:
    matrix = read_matrix(write(tmp_path / "m.yaml"))
    training = training_runs.training_of(matrix, matrix.variants[0], 0, 20, tmp_path)
    training.prepare()
    training.finish()
    mine = tmp_path / "fast" / "notes" / "a.txt"
    mine.parent.mkdir()
    mine.touch()
    assert training.finished
    training_runs.remove_runs(matrix, tmp_path)
    assert not training.directory.exists() and mine.exists() and matrix.path.exists()


def run(*arguments: str | Path, datasets: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "compare_recipes.py"), *map(str, arguments)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **kwargs)


@pytest.mark.slow
def test_a_comparison_from_start_to_report(datasets: Path, tmp_path: Path) -> None:
    matrix, output = write(tmp_path / "m.yaml"), tmp_path / "out"
    done = run(matrix, "--output", output, "--store", datasets=datasets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fast, seed 0: panoptic_seg/PQ" in done.stdout and "after 20 of 20 iterations" in done.stdout
    found = training_reports.read_report(tmp_path / "m.json")
    for variant in found["variants"]:
        (one,) = variant["runs"]
        assert [point["iteration"] for point in one["evaluations"]] == [10, 20]
        assert all(point["minutes"] > 0 and 0 <= point["value"] <= 100 for point in one["evaluations"])
        assert variant["batch"] == 2 and variant["iterations"] == 20
    assert json.loads((output / "report.json").read_text()) == found
    assert training_figure.is_of(found, output / "curves.png")
    directory = output / "fast" / "seed0"
    assert (directory / "model_best.safetensors").is_file() and not list(directory.glob("*.pth"))

    # Finished runs are kept, and a run with other settings is not taken for them.
    before = (directory / "metrics.json").stat().st_mtime_ns
    done = run(matrix, "--output", output, datasets=datasets)
    assert done.returncode == 0 and "iterations on" not in done.stdout, done.stdout + done.stderr
    assert (directory / "metrics.json").stat().st_mtime_ns == before
    done = run(matrix, "--output", output, "--iterations", "30", datasets=datasets)
    assert done.returncode == 2 and "other settings" in done.stderr and "--output" in done.stderr


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(datasets: Path, tmp_path: Path) -> None:
    """SIGTERM lets the training save; the same command continues it from there, not from the beginning."""
    text = SMALL.replace("{iterations: 20}", "{iterations: 4000}").replace("evaluations: 2", "evaluations: 400")
    matrix, output = write(tmp_path / "m.yaml", text), tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools" / "compare_recipes.py"), str(matrix), "--output", str(output)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    directory = output / "fast" / "seed0"

    def stop_when(file: Path, text: str) -> None:
        """Start the comparison, and stop it as soon as a file has a text."""
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not (file.is_file() and text in file.read_text()):
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate()
        assert process.returncode == 3 and b"continues" in errors, errors

    stop_when(directory / "metrics.json", "panoptic_seg/PQ")
    assert (directory / "last_checkpoint").read_text().startswith("model_")
    assert not (directory / "done.json").exists()
    before = (directory / "metrics.json").read_text().splitlines()[0]
    stop_when(directory / "log.txt", "Resuming after")
    assert (directory / "metrics.json").read_text().splitlines()[0] == before


def test_missing_data_and_gpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = read_matrix(write(tmp_path / "m.yaml"))
    with pytest.raises(FileNotFoundError, match="panoptic_train.json does not exist"):
        training_runs.make_dataset(matrix, tmp_path)
    monkeypatch.setattr(compare_recipes.torch.cuda, "device_count", lambda: 0)
    on_gpu = read_matrix(write(tmp_path / "n.yaml", SMALL.replace("device: cpu", "device: cuda")))
    with pytest.raises(ValueError, match="there is none"):
        compare_recipes._devices(on_gpu, None)
    monkeypatch.setattr(compare_recipes.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert compare_recipes._devices(on_gpu, None) == ["0", "1"] and compare_recipes._devices(on_gpu, "1") == ["1"]
    with pytest.raises(ValueError, match="'7', but there are 0, 1"):
        compare_recipes._devices(on_gpu, "7")
    assert compare_recipes._devices(matrix, None) == [None]


def test_a_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = write(tmp_path / "m.yaml")
    assert compare_recipes.main([str(matrix), "--dry-run", "--minutes", "3", "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "2 runs of 3 minutes each, 6 minutes of training in all" in text and "SOLVER.BASE_LR 0.0001" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("bound", "told"), [("margin: 4", True), ("at_least: 60", False)])
def test_a_check_without_a_stored_report_is_told_at_the_start(
    bound: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = write(tmp_path / "m.yaml", SMALL + f"bound: {{variant: fast, {bound}}}\n")
    assert compare_recipes.main([str(matrix), "--check", "--dry-run"]) == 0
    assert ("made, but not checked" in capsys.readouterr().out) is told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "quick"], "no 'quick', but fast, slow"),
        (["--seeds", "a"], "whole numbers"),
        (["--minutes", "0"], "above 0"),
        (["--per-gpu", "0"], "at least 1"),
        (["--check"], "has no 'bound'"),
        (["--store", "--iterations", "40"], "--store"),
        (["--store", "--variants", "fast"], "--store"),
    ],
)
def test_wrong_options(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_recipes.main([str(write(tmp_path / "m.yaml")), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_settings_of_a_report_are_those_of_the_matrix(tmp_path: Path) -> None:
    settings = training_matrix.settings_of(read_matrix(write(tmp_path / "m.yaml")))
    assert settings["budget"] == {"minutes": None, "iterations": 20}
    assert settings["dataset"] == ["shapes/annotations/panoptic_train.json"]
