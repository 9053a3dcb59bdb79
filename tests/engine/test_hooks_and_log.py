"""Weight average, console line, reports and random states."""

from __future__ import annotations

import json
import logging
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_training import start, tiny_config
from torch import nn

from mask2former.checkpoint.writing import plain_data
from mask2former.engine import stop_signals
from mask2former.engine.best_model import by_dataset, format_results, main_metric
from mask2former.engine.distributed import get_random_state, preserved_random_state, set_random_state
from mask2former.engine.ema import WeightAverage
from mask2former.engine.hooks import CheckpointHook, EvaluationHook
from mask2former.engine.stop_signals import StopSignal
from mask2former.engine.training_log import ConsoleWriter, condense_losses


def test_condensed_losses_sum_over_layers() -> None:
    losses = {"loss_ce": 1.0, "loss_mask": 2.0, "loss_ce_0": 3.0, "loss_ce_11": 4.0, "loss_dice_2": 5.0}
    assert condense_losses(losses) == {"ce": 8.0, "mask": 2.0, "dice": 5.0}


def test_console_line() -> None:
    writer = ConsoleWriter(max_iter=100, images_per_step=8)
    with EventStorage() as storage:
        for i in range(20):
            storage.iter = i
            storage.put_scalar("time", 0.5 if i < 19 else 2.5)
        storage.put_scalars(loss_ce=1.0, loss_ce_0=2.0, loss_mask=4.0, total_loss=7.0, data_time=0.0156)
        storage.put_scalars(grad_norm=12.5)
        storage.put_scalar("lr", 1e-4, smoothing_hint=False)
        line = writer.line(storage)
        assert storage.latest()["images_per_second"][0] == pytest.approx(8 / 0.6)
        assert storage.latest()["eta_seconds"][0] == pytest.approx(80 * 0.6)
    parts = [part.strip() for part in line.split("|")]
    assert parts[:4] == ["iter 20/100", "eta 0:00:48", "13.3 img/s", "0.6 s/it"]
    assert parts[4:8] == ["loss 7 (ce 3, mask 4)", "lr 0.0001", "grad 12.5", "data 0.016 s"]


def test_console_line_of_the_first_step_has_no_speed() -> None:
    with EventStorage() as storage:
        storage.put_scalars(total_loss=7.0)
        assert ConsoleWriter(10, 2).line(storage).startswith("iter 1/10 | loss 7")


def test_training_logs_a_line_a_json_file_and_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        start(tiny_config(tmp_path)).train()
    lines = [r.getMessage() for r in caplog.records if r.name == "mask2former.engine.training_log"]
    assert [line.split(" ")[1] for line in lines] == ["1/6", "2/6", "4/6", "6/6"]
    assert " s for the first step | loss " in lines[0]
    assert all("loss" in line and "(ce " in line and "lr " in line for line in lines)
    rows = [json.loads(row) for row in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [1, 3, 5]  # the first line adds no row
    final = next(row for row in rows if row["iteration"] == 5 and "total_loss" in row)
    assert {
        "loss_ce",
        "loss_mask_0",
        "total_loss",
        "grad_norm",
        "data_time",
        "lr",
        "images_per_second",
    } <= final.keys()
    assert final["lr"] == pytest.approx(0.01 * (1 - 5 / 6) ** 0.9)  # the base rate, not the backbone's
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_weight_average_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = WeightAverage(model, 0.5)
    expected = 0.0
    for n, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 10.0
    average.apply()
    assert model.weight.item() == pytest.approx(expected, rel=1e-5)


class Renamed(nn.Linear):
    """Its state dict has other names than its tensors."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}kernel"] = self.weight if keep_vars else self.weight.detach()


class Computed(nn.Linear):
    """Its state dict has other values than its tensors."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight.detach() * 2


@pytest.mark.parametrize("case", ["plain", "shared", "exchanged", "renamed", "computed"])
def test_weight_average_reads_the_tensors_of_the_state_dict(case: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    if case == "shared":
        model[2].weight = model[1].weight
    if case == "renamed":
        model[1] = Renamed(3, 3, bias=False)
    if case == "computed":
        model[1] = Computed(3, 3, bias=False)
    average = WeightAverage(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    for n in range(4):
        if case == "exchanged" and n == 2:
            model[2] = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            model[1].weight.add_(n)
        model(torch.randn(4, 3))
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        for name, value in expected.items():
            value.lerp_(model.state_dict()[name], 1 - decay)
    torch.testing.assert_close(average.state_dict()["average"], expected)


def test_weight_average_comes_back_after_an_error() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    before = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(model.weight, before)
        raise RuntimeError
    assert not model.weight.any()


def test_weight_average_refuses_another_model() -> None:
    state = WeightAverage(nn.Linear(2, 2, bias=False), 0.9).state_dict()
    with pytest.raises(ValueError, match="'bias'"):
        WeightAverage(nn.Linear(2, 2), 0.9).load_state_dict(state)
    with pytest.raises(ValueError, match="EMA_DECAY"):
        WeightAverage(nn.Linear(2, 2), 1.0)


def test_fresh_average_starts_from_the_loaded_weights(tmp_path: Path) -> None:
    trained = start(tiny_config(tmp_path / "a"))
    trained.train()
    keys = ("MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth"), "SOLVER.EMA_DECAY", "0.9")
    fresh = start(tiny_config(tmp_path / "b", *keys))
    assert fresh.start_iter == 0
    assert fresh.weight_average is not None
    state = trained.checkpointer.model.state_dict()
    for name, value in fresh.weight_average.state_dict()["average"].items():
        assert torch.equal(value, state[name])


def draws() -> tuple[float, float, float]:
    return random.gauss(0, 1), float(np.random.randn()), float(torch.randn(()))


def test_random_states_round_trip() -> None:
    draws()  # leaves half a gauss pair in random and numpy
    state = plain_data(get_random_state())
    first = draws(), draws()
    set_random_state(state)
    assert (draws(), draws()) == first


def test_preserved_random_state() -> None:
    state = get_random_state()
    expected = draws()
    set_random_state(state)
    with pytest.raises(KeyError), preserved_random_state():
        draws()
        raise KeyError
    assert draws() == expected


def test_main_metric_prefers_panoptic_quality() -> None:
    results = {"sem_seg": {"mIoU": 1.0}, "segm": {"AP": 2.0}, "panoptic_seg": {"PQ": 3.0}}
    assert main_metric(results) == ("panoptic_seg/PQ", 3.0)
    del results["panoptic_seg"]
    assert main_metric(results) == ("segm/AP", 2.0)
    assert main_metric({"bbox": {"AP": 2.0}}) is None


def test_table_of_results() -> None:
    one = by_dataset({"segm": {"AP": 12.3456, "AP50": 20.0, "AP-cat": 1.0}}, ["pets_val"])
    table = format_results(one)
    assert "pets_val" in table and "AP50" in table and "12.346" in table and "AP-cat" not in table
    two = by_dataset({"a": {"segm": {"AP": 1.0}}, "b": {"segm": {"AP": 2.0}}}, ["a", "b"])
    assert list(two) == ["a", "b"]
    assert "no results" in format_results({"a": {}})


@pytest.mark.parametrize(("iteration", "error"), [(3, None), (5, None), (5, RuntimeError("broken evaluation"))])
def test_evaluation_hook_drops_its_function(iteration: int, error: Exception | None) -> None:
    """Of 5 iterations: after a failed training, after a good one, and after an evaluation that fails."""
    evaluated = []

    def evaluate() -> dict[str, float]:
        evaluated.append(iteration)
        if error is not None:
            raise error
        return {}

    hook = EvaluationHook(0, evaluate)
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=5)
    if error is None:
        hook.after_train()
    else:
        with pytest.raises(RuntimeError, match="broken evaluation"):
            hook.after_train()
    assert evaluated == ([] if iteration < 5 else [5])
    assert evaluate not in vars(hook).values()


def test_a_single_kept_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        CheckpointHook(10, 1)


@pytest.mark.parametrize("later", [signal.SIGTERM, signal.SIGINT])
def test_one_stop_may_come_as_several_signals(later: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch system, launcher and parent's death may all tell the same process; a later repetition is meant."""
    clock = [100.0]
    monkeypatch.setattr(stop_signals.time, "monotonic", lambda: clock[0])
    got: list[int] = []
    before = {s: signal.signal(s, lambda number, frame: got.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopSignal()
        with stop.listening():
            signal.raise_signal(signal.SIGTERM)
            clock[0] += 0.5
            signal.raise_signal(later)
            assert stop.number == signal.SIGTERM and got == []
            clock[0] += 60
            signal.raise_signal(later)
            assert got == [later]
        signal.raise_signal(signal.SIGINT)
        assert got == [later, signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
