"""A run that was stopped and resumed must do exactly what an uninterrupted one does."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from rank_checks import TINY_MASK_FORMER, TRAINING_OPTIONS, image
from tiny_training import TinyTrainer, start, tiny_config, weights
from torch import nn

from mask2former.config import load_config
from mask2former.engine.hooks import TrainingInterrupted


def assert_same(first: TinyTrainer, second: TinyTrainer) -> None:
    """Bitwise equal weights and optimizer state, and an equal schedule."""
    ours, theirs = weights(first), weights(second)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    states = first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    for index, entries in states[0].items():
        for name, value in entries.items():
            assert torch.equal(value, states[1][index][name]), (index, name)
    assert first.scheduler.state_dict() == second.scheduler.state_dict()


def continue_from_middle(
    source: Path, target: Path, *overrides: str, trainer_class: type[TinyTrainer] = TinyTrainer
) -> TinyTrainer:
    """Resume in a new directory that holds only the checkpoint after step 3 of `source`."""
    target.mkdir()
    shutil.copy(source / "model_0000002.pth", target)
    (target / "last_checkpoint").write_text("model_0000002.pth")
    trainer = start(tiny_config(target, *overrides), resume=True, trainer_class=trainer_class)
    assert trainer.start_iter == 3
    trainer.train()
    return trainer


class QueriesTrainer(TinyTrainer):
    """Trains the real model, with queries that only a training has, on images with more objects than these."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        options = [*TINY_MASK_FORMER, *TRAINING_OPTIONS]
        return build_model(load_config("nuclei/maskformer2_efficientnet_lite0.yaml", options))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0, seed: int | None = None) -> Any:
        return ([image(3), image(8)] for _ in itertools.count(start_iteration))


@pytest.mark.slow
def test_queries_of_a_training_resume_exactly(tmp_path: Path) -> None:
    """Their weights, and the random numbers of noise and of the objects that are chosen."""
    straight = start(tiny_config(tmp_path / "straight"), trainer_class=QueriesTrainer)
    straight.train()
    own = [name for name in weights(straight) if "training_queries" in name]
    assert len(own) == 4
    resumed = continue_from_middle(tmp_path / "straight", tmp_path / "resumed", trainer_class=QueriesTrainer)
    assert_same(straight, resumed)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("SEED", "-1"),
        ("SOLVER.OPTIMIZER", "SGD"),
        ("SOLVER.ACCUMULATION_STEPS", "2"),
        ("SOLVER.EMA_DECAY", "0.9"),
        ("TEST.EVAL_PERIOD", "3"),  # draws random numbers between step 3 and 4 of the uninterrupted run only
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"),
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(2, 5)"),
    ],
    ids=lambda o: " ".join(o) or "plain",
)
def test_three_and_three_steps_equal_six(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    straight = start(tiny_config(tmp_path / "straight", *overrides))
    before = weights(straight)
    straight.train()
    assert not torch.equal(before["head.weight"], weights(straight)["head.weight"])
    resumed = continue_from_middle(tmp_path / "straight", tmp_path / "resumed", *overrides)
    assert_same(straight, resumed)
    if straight.weight_average is not None:
        assert resumed.weight_average is not None
        for name, value in straight.weight_average.state_dict()["average"].items():
            assert torch.equal(value, resumed.weight_average.state_dict()["average"][name])


def test_randomness_is_what_resume_restores(tmp_path: Path) -> None:
    """Guards the test above: without the saved random states the result is another one."""
    straight = start(tiny_config(tmp_path / "straight"))
    straight.train()
    target = tmp_path / "resumed"
    target.mkdir()
    data = torch.load(tmp_path / "straight" / "model_0000002.pth", weights_only=True)
    data["trainer"].pop("random_states")
    torch.save(data, target / "model_0000002.pth")
    (target / "last_checkpoint").write_text("model_0000002.pth")
    resumed = start(tiny_config(target), resume=True)
    resumed.train()
    assert not torch.equal(weights(straight)["head.weight"], weights(resumed)["head.weight"])


def test_truncated_checkpoint_is_skipped(tmp_path: Path) -> None:
    straight = start(tiny_config(tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD", "2"))
    straight.train()
    directory = tmp_path / "resumed"
    directory.mkdir()
    for name in ("model_0000001.pth", "model_0000003.pth"):
        shutil.copy(tmp_path / "run" / name, directory)
    newest = directory / "model_0000003.pth"
    newest.write_bytes(newest.read_bytes()[:5000])
    (directory / "last_checkpoint").write_text(newest.name)
    resumed = start(tiny_config(directory), resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert_same(straight, resumed)


class SignalAfter(HookBase):
    def __init__(self, iteration: int, number: int) -> None:
        self.iteration, self.number = iteration, number

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    straight = start(tiny_config(tmp_path / "straight"))
    straight.train()

    class Signalled(TinyTrainer):
        def build_hooks(self) -> list[HookBase]:
            return [SignalAfter(3, number), *super().build_hooks()]

    stopped = start(tiny_config(tmp_path / "stopped"), trainer_class=Signalled)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted) as stop:
        stopped.train()
    assert stop.value.code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    resumed = start(tiny_config(tmp_path / "stopped"), resume=True)
    assert resumed.start_iter == 4
    resumed.train()
    assert_same(straight, resumed)


def test_fresh_start_ignores_checkpoints_and_resume_without_one_starts_anew(tmp_path: Path) -> None:
    start(tiny_config(tmp_path)).train()
    assert start(tiny_config(tmp_path), resume=False).start_iter == 0
    assert start(tiny_config(tmp_path / "empty"), resume=True).start_iter == 0


def test_longer_training_can_be_resumed(tmp_path: Path) -> None:
    start(tiny_config(tmp_path)).train()
    longer = start(tiny_config(tmp_path, "SOLVER.MAX_ITER", "9"), resume=True)
    assert longer.start_iter == 6
    longer.train()
    assert longer.iter == 9


def test_average_that_is_switched_on_later_begins_with_the_trained_weights(tmp_path: Path) -> None:
    start(tiny_config(tmp_path)).train()
    resumed = start(tiny_config(tmp_path, "SOLVER.EMA_DECAY", "0.9", "SOLVER.MAX_ITER", "9"), resume=True)
    assert resumed.start_iter == 6
    assert resumed.weight_average is not None
    average = resumed.weight_average.state_dict()["average"]
    for name, value in weights(resumed).items():
        assert torch.equal(average[name], value), name


def test_loss_scaler_is_saved(tmp_path: Path) -> None:
    keys = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")
    trainer = start(tiny_config(tmp_path, *keys))
    assert trainer.train_step.grad_scaler is not None
    scaler = trainer.train_step.grad_scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 128.0})
    trainer.train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]["_trainer"]["grad_scaler"]
    assert saved["scale"] == 128.0
    resumed = start(tiny_config(tmp_path, *keys), resume=True)
    assert resumed.train_step.grad_scaler is not None
    assert resumed.train_step.grad_scaler.get_scale() == 128.0


def test_newest_checkpoints_are_kept_and_other_runs_files_stay(tmp_path: Path) -> None:
    (tmp_path / "model_0009999.pth").write_bytes(b"of another run")
    trainer = start(tiny_config(tmp_path, "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_ITER", "6"))
    trainer.train()
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == [
        "model_0000002.pth",
        "model_0000003.pth",
        "model_0000004.pth",
        "model_0009999.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_final_safetensors_hold_the_averaged_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer = start(tiny_config(tmp_path, "SOLVER.EMA_DECAY", "0.9"))
    trainer.train()
    assert trainer.weight_average is not None
    final = load_file(tmp_path / "model_final.safetensors")
    for name, value in trainer.weight_average.state_dict()["average"].items():
        torch.testing.assert_close(final[name], value, rtol=0, atol=0)
    assert not torch.equal(final["head.weight"], weights(trainer)["head.weight"])
    evaluated = TinyTrainer.load_for_test(tiny_config(tmp_path, "SOLVER.EMA_DECAY", "0.9"), resume=True)
    assert torch.equal(evaluated.state_dict()["head.weight"], final["head.weight"])


class Judged(TinyTrainer):
    pass


def test_best_model_is_kept_across_resume(tmp_path: Path) -> None:
    Judged.metrics = [3.0, 7.0, 5.0]  # after steps 2, 4, 6
    cfg = tiny_config(tmp_path, "TEST.EVAL_PERIOD", "2")
    start(cfg, trainer_class=Judged).train()
    note = json.loads((tmp_path / "model_best.json").read_text())
    assert note == {"metric": "segm/AP", "value": 7.0, "dataset": "tiny_val", "iteration": 3}
    best = (tmp_path / "model_best.safetensors").read_bytes()
    Judged.metrics = [6.0, 8.0]
    longer = tiny_config(tmp_path, "TEST.EVAL_PERIOD", "2", "SOLVER.MAX_ITER", "8")
    resumed = start(longer, resume=True, trainer_class=Judged)
    assert resumed.best.value == 7.0
    resumed.train()  # evaluates once, at the end
    assert (tmp_path / "model_best.safetensors").read_bytes() == best
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
