"""Rows of metrics.json: each once, also after a resume."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from tiny_training import TinyTrainer, start, tiny_config

from mask2former.engine.metrics_file import MetricsFile
from mask2former.engine.stop_signals import TrainingInterrupted


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, *lines: str) -> MetricsFile:
    path.write_text("\n".join(lines))
    return MetricsFile(path, 20)


TRAIN = '{"iteration": 19, "lr": 0.1}'
RESULT = '{"iteration": 19, "segm/AP": 1.0}'


def test_rows_and_results_are_written_once(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.json", 20)
    with EventStorage() as storage:
        for iteration in (0, 1):
            storage.iter = iteration
            storage.put_scalars(loss=float(iteration))
            file.write()
            file.write()
        storage.put_scalars(**{"segm/AP": 5.0}, smoothing_hint=False)
        file.write_results(1, {"segm/AP": 5.0})
        file.write()
    expected = [{"iteration": 0, "loss": 0.0}, {"iteration": 1, "loss": 0.5}, {"iteration": 1, "segm/AP": 5.0}]
    assert rows(tmp_path / "metrics.json") == expected


@pytest.mark.parametrize("torn", ['{"iteration": 20, "lo', "{", '{"iteration": 25}', "\x00\x00", "17"])
def test_rows_after_the_checkpoint_and_a_truncated_line_are_removed(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.json"
    file = written(path, TRAIN, RESULT, '{"iteration": 22, "segm/AP": 2.0}', torn)
    file.begin(20, resumed=True)
    assert path.read_text() == f"{TRAIN}\n{RESULT}\n"
    assert file.has_results(19) and not file.has_results(18)


def test_foreign_lines_and_a_row_without_its_line_break_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    written(path, "a note", "[1]", TRAIN).begin(20, resumed=True)
    assert path.read_text() == f"a note\n[1]\n{TRAIN}\n"


def test_an_evaluation_that_is_repeated_replaces_its_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    file = written(path, TRAIN, RESULT)
    file.begin(20, resumed=True)
    with EventStorage():
        file.write_results(19, {"segm/AP": 3.0})
    assert rows(path) == [{"iteration": 19, "lr": 0.1}, {"iteration": 19, "segm/AP": 3.0}]


def test_a_new_training_begins_a_new_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for number in (1, 2):
        written(path, TRAIN).begin(0, resumed=False)
        assert not path.exists()
        assert (tmp_path / f"metrics.{number}.json").read_text() == TRAIN
    written(path, TRAIN).begin(0, resumed=True)  # killed before its first checkpoint
    assert path.read_text() == ""


class Extra(HookBase):
    """A hook as people add it: it comes last, and has a value from time to time."""

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % 3 == 0:
            self.trainer.storage.put_scalar("own", float(self.trainer.iter), smoothing_hint=False)


@pytest.mark.parametrize("stopped_at", [3, 5, 6])
def test_what_a_hook_adds_at_the_end_is_written(tmp_path: Path, stopped_at: int) -> None:
    """Rows of a training that a signal stopped are no others than those of one that goes on."""

    class Own(TinyTrainer):
        def build_hooks(self) -> list[HookBase]:
            hooks = super().build_hooks()
            return [*hooks[:-1], Extra(), hooks[-1]]

    trainer = start(tiny_config(tmp_path, "LOGGERS", "()"), trainer_class=Own)
    run = trainer.run_step

    def run_step() -> None:
        run()
        if trainer.iter + 1 == stopped_at:
            trainer._stop_signal.number = 15

    trainer.run_step = run_step  # type: ignore[method-assign]
    with contextlib.suppress(TrainingInterrupted):
        trainer.train()
    found = rows(tmp_path / "metrics.json")
    assert [row["own"] for row in found if "own" in row] == [2.0, 5.0][: stopped_at // 3]
    assert [row["iteration"] for row in found if "lr" in row] == [1, 3, 5][: stopped_at // 2]
