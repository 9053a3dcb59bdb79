"""Early stopping and the evaluation before the first iteration, on a tiny model with given metrics."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from tiny_training import TinyTrainer, start, tiny_config, weights


def trainer_with(*metrics: float) -> type[TinyTrainer]:
    """A trainer whose evaluations give these metrics, then 1.0; `evaluations` counts them."""

    class Measured(TinyTrainer):
        keep_checkpoints = 0

    Measured.metrics = list(metrics)
    return Measured


OPTIONS = ("SOLVER.MAX_ITER", "12", "SOLVER.EARLY_STOP_PATIENCE", "2", "TEST.EVAL_PERIOD", "2")


def test_stops_after_evaluations_without_improvement(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = trainer_with(5.0, 7.0, 7.0, math.nan, 9.0)
    with caplog.at_level(logging.INFO):
        trainer = start(tiny_config(tmp_path, *OPTIONS), trainer_class=kind)
        trainer.train()
    assert trainer.iter == 7  # after the evaluation of iteration 8, of 12
    assert kind.metrics == [9.0]  # no evaluation after the stop
    assert (tmp_path / "model_final.safetensors").is_file()
    assert json.loads((tmp_path / "model_best.json").read_text())["value"] == 7.0
    assert "Stopping early after 8 iterations: 2 evaluations without improvement on 7.000" in caplog.text


def test_improvements_and_patience_zero_go_to_the_end(tmp_path: Path) -> None:
    kind = trainer_with(1.0, 0.5, 2.0, 1.5, 3.0)
    assert start(tiny_config(tmp_path / "a", *OPTIONS), trainer_class=kind).train() is None
    assert kind.metrics == []
    kind = trainer_with(3.0, 2.0, 1.0, 0.5, 0.4)
    trainer = start(tiny_config(tmp_path / "b", *OPTIONS, "SOLVER.EARLY_STOP_PATIENCE", "0"), trainer_class=kind)
    trainer.train()
    assert trainer.iter == 12


def test_a_finished_early_stop_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = tiny_config(tmp_path, *OPTIONS)
    first = start(cfg, trainer_class=trainer_with(5.0, 4.0, 3.0))
    first.train()
    with caplog.at_level(logging.INFO):
        second = start(cfg, resume=True, trainer_class=trainer_with(9.0))
        second.train()
    assert "it is complete" in caplog.text
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name])
    patient = start(tiny_config(tmp_path, *OPTIONS, "SOLVER.EARLY_STOP_PATIENCE", "9"), True, trainer_with())
    patient.train()
    assert patient.iter == 12


def test_more_iterations_continue_an_early_stop(tmp_path: Path) -> None:
    start(tiny_config(tmp_path, *OPTIONS), trainer_class=trainer_with(5.0, 4.0, 3.0)).train()
    longer = (*OPTIONS, "SOLVER.MAX_ITER", "20")
    second = start(tiny_config(tmp_path, *longer), True, trainer_with(6.0, 2.0, 1.0))
    second.train()
    assert second.iter == 11  # from 6 on: better at 8, and then twice not
    third = start(tiny_config(tmp_path, *longer), True, trainer_with())
    third.train()
    assert third.stopped_early and third.start_iter == 12


@pytest.mark.parametrize("kept", [4, 6])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(tmp_path: Path, kept: int) -> None:
    """Also if it was interrupted between a checkpoint and the evaluation of the same iteration."""
    metrics = [5.0, 7.0, 6.0, 6.5, 8.0]
    options = (*OPTIONS, "SOLVER.CHECKPOINT_PERIOD", "2")
    straight = start(tiny_config(tmp_path, *options), trainer_class=trainer_with(*metrics))
    straight.train()
    assert straight.iter == 7
    (tmp_path / "last_checkpoint").write_text(f"model_{kept - 1:07d}.pth")
    # The checkpoint of an iteration is saved before its evaluation, which is made up for.
    resumed = start(tiny_config(tmp_path, *options), True, trainer_with(*metrics[kept // 2 - 1 :]))
    resumed.train()
    assert resumed.iter == 7
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_baseline_comes_before_the_first_iteration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = tiny_config(tmp_path, "TEST.EVAL_AT_START", "True", "TEST.EVAL_PERIOD", "3")
    with caplog.at_level(logging.INFO):
        trainer = start(cfg, trainer_class=trainer_with(4.0, 3.0, 2.0))
        trainer.train()
    assert json.loads((tmp_path / "baseline.json").read_text()) == {
        "metric": "segm/AP",
        "value": 4.0,
        "dataset": "tiny_val",
    }
    assert "Before training: segm/AP 4.000." in caplog.text
    assert caplog.text.index("Before training") < caplog.text.index("iter 2/6")
    assert json.loads((tmp_path / "model_best.json").read_text())["value"] == 4.0  # training made it worse
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    kind = trainer_with(1.0)
    start(cfg, resume=True, trainer_class=kind).train()
    assert json.loads((tmp_path / "baseline.json").read_text())["value"] == 4.0


def test_an_evaluation_that_is_made_up_for_may_end_the_training(tmp_path: Path) -> None:
    """Killed between the evaluation that ends the training and its checkpoint."""
    options = (*OPTIONS, "SOLVER.CHECKPOINT_PERIOD", "2")
    straight = start(tiny_config(tmp_path, *options), trainer_class=trainer_with(5.0, 4.0, 3.0))
    straight.train()
    final = (tmp_path / "model_final.safetensors").read_bytes()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    (tmp_path / "model_final.safetensors").unlink()
    resumed = start(tiny_config(tmp_path, *options), True, trainer_with(3.0, 9.0))
    resumed.train()
    assert resumed.stopped_early and resumed.finished == 6
    assert (tmp_path / "model_final.safetensors").read_bytes() == final
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
