from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tiny_training import TinyModel, TinyTrainer, start, tiny_config, weights
from torch import Tensor, nn

from mask2former.engine.train_step import Precision, TrainStep, select_precision

FP32 = Precision("cpu", None)


class Mean(nn.Module):
    """Loss linear in the batch: its mean over samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        x = torch.stack([sample["x"] for sample in batch])
        return {"loss_a": (x * self.weight).sum(1).mean(), "loss_b": (x * self.weight.square()).sum(1).mean()}


def run(model: nn.Module, batches: list[Any], steps: int, **keywords: Any) -> tuple[TrainStep, EventStorage]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    keywords = {"precision": FP32, "log_period": 1, **keywords}
    step, data = TrainStep(max_iter=steps, **keywords), iter(batches)
    with EventStorage() as storage:
        for storage.iter in range(steps):
            step.run(model, optimizer, data, storage.iter)
    return step, storage


def take_one(step: TrainStep, model: nn.Module, batch: list[dict[str, Any]], **keywords: Any) -> None:
    with EventStorage():
        step.run(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), iter([batch]), 0, **keywords)


def samples(count: int) -> list[dict[str, Any]]:
    return [{"x": torch.randn(2), "file_name": f"{i}.png"} for i in range(count)]


def test_two_micro_batches_equal_one_batch() -> None:
    data = samples(8)
    whole, parts = Mean(), Mean()
    _, storage = run(whole, [data[:4], data[4:]], 2)
    _, split = run(parts, [data[:2], data[2:4], data[4:6], data[6:]], 2, accumulation_steps=2)
    torch.testing.assert_close(whole.weight, parts.weight)
    for name in ("total_loss", "loss_a", "loss_b", "grad_norm"):
        assert storage.latest()[name][0] == pytest.approx(split.latest()[name][0], rel=1e-5), name


def test_step_equals_plain_torch() -> None:
    data = samples(4)
    ours, plain = Mean(), Mean()
    run(ours, [data], 1, clip_norm=0.01)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    sum(plain(data).values()).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)


@pytest.mark.parametrize("build", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam])
def test_bad_step_of_a_custom_optimizer(tmp_path: Path, build: Callable[..., torch.optim.Optimizer]) -> None:
    """Optimizers that are not fused take no flag on the device, and must skip the step all the same."""

    class Custom(TinyTrainer):
        bad = {2: float("nan")}

        @classmethod
        def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
            return build(model.parameters(), lr=0.01)

    trainer = start(tiny_config(tmp_path, "SOLVER.MAX_NONFINITE_STEPS", "2"), trainer_class=Custom)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert trainer.train_step.log.bad_steps == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", ["ADAMW", "SGD"])
@pytest.mark.parametrize("position", [0, 3])
def test_bad_step_leaves_everything_as_it_was(
    tmp_path: Path, value: float, optimizer: str, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    class OneBad(TinyTrainer):
        bad = {position: value}

    keys = ("SOLVER.OPTIMIZER", optimizer, "SOLVER.MAX_NONFINITE_STEPS", "2")
    trainer = start(tiny_config(tmp_path, *keys), trainer_class=OneBad)
    seen: list[dict[str, Tensor]] = [weights(trainer)]
    moments = []
    inner = trainer.train_step.run

    def watched(*arguments: Any) -> None:
        inner(*arguments)
        seen.append(weights(trainer))
        state = trainer.optimizer.state[next(trainer.checkpointer.model.head.parameters())]
        moments.append({k: v.clone() for k, v in state.items() if isinstance(v, Tensor)})

    trainer.train_step.run = watched  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        trainer.train()
    for name, before in seen[position].items():
        assert torch.equal(before, seen[position + 1][name]), name
        assert torch.isfinite(seen[-1][name]).all(), name
    assert not torch.equal(seen[-1]["head.weight"], seen[position]["head.weight"])
    assert all(torch.isfinite(v).all() for state in moments for v in state.values())
    if optimizer == "ADAMW":
        assert moments[-1]["step"] == 5  # six steps, one of them skipped
    message = next(r.getMessage() for r in caplog.records if "not finite" in r.getMessage())
    assert f"iteration {position}: loss_ce = " in message
    assert f"image_{position}_0.png" in message
    assert trainer.train_step.log.bad_steps == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(line["total_loss"])) for line in lines if "total_loss" in line)


def test_training_stops_after_too_many_bad_steps(tmp_path: Path) -> None:
    class AllBad(TinyTrainer):
        bad = {i: float("nan") for i in range(1, 9)}

    trainer = start(tiny_config(tmp_path, "SOLVER.MAX_NONFINITE_STEPS", "3"), trainer_class=AllBad)
    with pytest.raises(FloatingPointError, match=r"(?s)loss_ce = nan.*image_3_0\.png.*MAX_NONFINITE_STEPS 3"):
        trainer.train()
    assert trainer.iter == 3  # looked at every second step; three bad ones are known after the fourth
    assert all(torch.isfinite(v).all() for v in weights(trainer).values())


def test_bad_gradient_of_a_good_loss_is_skipped_too() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batch: Any) -> dict[str, Tensor]:
            return {"loss": self.weight.sqrt().sum()}  # slope is infinite at zero

    model = Root()
    step, _ = run(model, [[]], 1)
    assert model.weight.item() == 0.0
    assert step.log.bad_steps == 1


def test_fp16_overflow_lowers_the_scale_and_is_not_counted() -> None:
    model = Mean()
    step, _ = run(model, [samples(2)] * 3, 1, precision=Precision("cpu", torch.float16))
    assert step.grad_scaler is not None
    start_scale = step.grad_scaler.get_scale()
    before = model.weight.detach().clone()
    take_one(step, model, [{"x": torch.tensor([1e35, 1.0])}])
    assert torch.equal(model.weight, before)
    assert step.grad_scaler.get_scale() == start_scale / 2
    assert step.log.bad_steps == 0


def test_fp16_gradients_that_overflow_at_any_scale_stop_the_training() -> None:
    step, _ = run(Mean(), [samples(2)], 1, precision=Precision("cpu", torch.float16))
    assert step.grad_scaler is not None
    step.grad_scaler.load_state_dict({**step.grad_scaler.state_dict(), "scale": 1e-9})
    with pytest.raises(FloatingPointError, match="SOLVER.AMP.DTYPE"):
        take_one(step, Mean(), [{"x": torch.tensor([float("inf"), 1.0])}])


def test_other_loss_terms_than_before_are_an_error() -> None:
    class Changing(Mean):
        calls = 0

        def forward(self, batch: Any) -> dict[str, Tensor]:
            self.calls += 1
            losses = super().forward(batch)
            return losses if self.calls == 1 else {"loss_a": losses["loss_a"]}

    with pytest.raises(RuntimeError, match="loss_b"):
        run(Changing(), [samples(2)] * 2, 2, log_period=2)


def test_losses_are_fetched_only_at_log_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = []
    original = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: fetches.append(1) or original(self))
    run(Mean(), [samples(2)] * 7, 7, log_period=3)
    assert len(fetches) == 3  # after steps 3, 6 and the last


def test_model_left_in_evaluation_mode() -> None:
    with pytest.raises(RuntimeError, match="evaluation mode"):
        take_one(TrainStep(precision=FP32, max_iter=1), Mean().eval(), samples(2))


def test_after_backward_sees_the_gradients_before_they_are_clipped() -> None:
    model, norms = Mean(), []
    step = TrainStep(precision=FP32, max_iter=1, clip_norm=1e-3)
    take_one(step, model, samples(2), after_backward=lambda: norms.append(float(model.weight.grad.norm())))
    assert len(norms) == 1 and norms[0] > 0.1
    assert float(model.weight.grad.norm()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("enabled", "name", "dtype"),
    [
        ("False", "bfloat16", None),
        ("True", "auto", None),  # mixed precision seldom helps a CPU
        ("True", "bfloat16", torch.bfloat16),
        ("True", "float16", torch.float16),
    ],
)
def test_precision_on_cpu(tmp_path: Path, enabled: str, name: str, dtype: torch.dtype | None) -> None:
    precision = select_precision(tiny_config(tmp_path, "SOLVER.AMP.ENABLED", enabled, "SOLVER.AMP.DTYPE", name))
    assert precision.dtype is dtype
    assert (precision.grad_scaler() is not None) == (dtype is torch.float16)
    with precision.autocast():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype is (dtype or torch.float32)


def test_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.DTYPE is 'fp8'"):
        select_precision(tiny_config(tmp_path, "SOLVER.AMP.DTYPE", "fp8"))


def test_batch_must_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="IMS_PER_BATCH 4 must be a multiple"):
        TinyTrainer(tiny_config(tmp_path, "SOLVER.ACCUMULATION_STEPS", "3"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_host_sync_between_log_steps() -> None:
    model = TinyModel().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    batch = [{"x": torch.randn(4, device="cuda"), "y": torch.randn((), device="cuda")} for _ in range(4)]
    step = TrainStep(precision=Precision("cuda", torch.float16), max_iter=99, clip_norm=0.1)
    batches = iter([batch] * 6)
    step.run(model, optimizer, batches, 0)  # the first step sets up states
    torch.cuda.set_sync_debug_mode("error")
    try:
        for iteration in range(1, 6):
            step.run(model, optimizer, batches, iteration)
    finally:
        torch.cuda.set_sync_debug_mode("default")
