"""A saved optimizer or scaler state is checked before it is loaded: torch would read behind its end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.checkpoint import CheckpointError, CorruptCheckpointError, SafeCheckpointer
from mask2former.checkpoint.training_state import check_optimizer_state, check_scaler_state, with_names


def optimizer_of(size: int = 3, kind: str = "adamw", steps: int = 1) -> torch.optim.Optimizer:
    """An optimizer of one linear layer, after `steps` steps."""
    torch.manual_seed(0)
    layer = nn.Linear(size, 2)
    pairs = [{"params": list(layer.named_parameters())}]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(pairs, lr=0.1, momentum=0.9)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(pairs, lr=0.1, fused=True)
    for _ in range(steps):
        layer(torch.ones(1, size)).sum().backward()
        optimizer.step()
    return optimizer


def test_a_good_state_is_returned_in_the_layout_of_the_parameters() -> None:
    state = optimizer_of().state_dict()
    moment = state["state"][0]["exp_avg"]
    state["state"][0]["exp_avg"] = moment.t().contiguous().t()  # equal, in another order in memory
    result = check_optimizer_state(optimizer_of(steps=0), state, "optimizer")
    assert torch.equal(result["state"][0]["exp_avg"], moment)
    assert result["state"][0]["exp_avg"].is_contiguous()
    assert torch.equal(result["state"][1]["exp_avg_sq"], state["state"][1]["exp_avg_sq"])


@pytest.mark.parametrize("sizes", [(20, 400), (20, 5)])
def test_another_layer_size(sizes: tuple[int, int]) -> None:
    with pytest.raises(CorruptCheckpointError, match=rf"'exp_avg'\] \(weight\) is \(2, {sizes[0]}\) float32"):
        check_optimizer_state(optimizer_of(sizes[1], steps=0), optimizer_of(sizes[0]).state_dict(), "optimizer")


DAMAGE: dict[str, Any] = {
    "one element": lambda state: state["state"][0].update(exp_avg=torch.zeros(1)),
    "no dimension": lambda state: state["state"][0].update(exp_avg_sq=torch.tensor(1.0)),
    "double": lambda state: state["state"][0].update(exp_avg=torch.zeros(2, 3, dtype=torch.float64)),
    "list": lambda state: state["state"][0].update(exp_avg=[0.0] * 6),
    "sparse": lambda state: state["state"][0].update(exp_avg=torch.zeros(2, 3).to_sparse()),
    "NaN": lambda state: state["state"][0]["exp_avg"].fill_(float("nan")),
    "negative": lambda state: state["state"][0]["exp_avg_sq"].sub_(10.0),
    "NaN step": lambda state: state["state"][0].update(step=torch.tensor(float("nan"))),
    "half step": lambda state: state["state"][0].update(step=torch.tensor(1.5)),
    "steps": lambda state: state["state"][0].update(step=torch.ones(2)),
    "text step": lambda state: state["state"][0].update(step="1"),
    "number of steps": lambda state: state["state"][0].update(step=10**400),
    "no moment": lambda state: state["state"][0].pop("exp_avg"),
    "None": lambda state: state["state"][0].update(exp_avg=None),
    "tensor for entries": lambda state: state["state"].update({0: torch.zeros(2)}),
    "unknown parameter": lambda state: state["state"].update({9: {}}),
    "no groups": lambda state: state.pop("param_groups"),
    "no state": lambda state: state.pop("state"),
    "list for state": lambda state: state.update(state=[]),
    "text group": lambda state: state.update(param_groups=["a"]),
    "text indices": lambda state: state["param_groups"][0].update(params=["a", "b"]),
    "twice": lambda state: state["param_groups"][0].update(params=[0, 0]),
    "fewer names": lambda state: state["param_groups"][0].update(param_names=["weight"]),
    "numbers for names": lambda state: state["param_groups"][0].update(param_names=[1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_state(damage: Any) -> None:
    state = optimizer_of().state_dict()
    damage(state)
    with pytest.raises(CorruptCheckpointError, match="^optimizer"):
        check_optimizer_state(optimizer_of(steps=0), state, "optimizer")


def test_other_optimizers_and_groups_are_named() -> None:
    adam, sgd = optimizer_of(), optimizer_of(kind="sgd")
    with pytest.raises(CheckpointError, match=r"SOLVER.OPTIMIZER is SGD, .* state of ADAMW"):
        check_optimizer_state(sgd, adam.state_dict(), "optimizer")
    with pytest.raises(CheckpointError, match=r"SOLVER.OPTIMIZER is ADAMW, .* state of SGD"):
        check_optimizer_state(adam, sgd.state_dict(), "optimizer")
    state = adam.state_dict()
    state["param_groups"][0].pop("param_names")
    state["param_groups"] *= 1
    state["param_groups"][0]["params"] = [0]
    with pytest.raises(CheckpointError, match="1 groups of 1 parameters, this training has 1 of 2"):
        check_optimizer_state(adam, state, "optimizer")


def test_parameters_without_a_state_are_told(caplog: pytest.LogCaptureFixture) -> None:
    state = optimizer_of().state_dict()
    del state["state"][1]
    check_optimizer_state(optimizer_of(steps=0), state, "optimizer")
    assert "no state for 1 of 2 parameters (bias)" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", float("nan")),
        ("scale", 0.0),
        ("scale", torch.tensor(1.0)),
        ("growth_factor", "2"),
        ("backoff_factor", 1.5),
        ("growth_interval", 0),
        ("_growth_tracker", None),
    ],
)
def test_a_damaged_scaler(key: str, value: Any) -> None:
    state = torch.amp.GradScaler("cpu").state_dict()
    check_scaler_state(state, "scaler")
    with pytest.raises(CorruptCheckpointError, match=r"^scaler"):
        check_scaler_state({**state, key: value}, "scaler")
    with pytest.raises(CorruptCheckpointError, match=f"no entry '{key}'"):
        check_scaler_state({k: v for k, v in state.items() if k != key}, "scaler")


def test_the_checkpointer_checks_plain_optimizers_before_it_loads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        layer = nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    model, optimizer = parts()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.025
    SafeCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000000", iteration=0)
    again, fresh = parts()
    SafeCheckpointer(again, str(tmp_path), optimizer=fresh).resume_or_load("")
    assert fresh.param_groups[0]["lr"] == 0.025 and torch.equal(again.weight, model.weight)

    file = tmp_path / "model_0000000.pth"
    good = torch.load(file, weights_only=True)

    def refused(change: Any) -> None:
        data = torch.load(file, weights_only=True)
        change(data)
        torch.save(data, tmp_path / "model_0000001.pth")
        (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
        other, state = parts()
        with caplog.at_level(logging.ERROR):
            SafeCheckpointer(other, str(tmp_path), optimizer=state).resume_or_load("")
        assert "OLDER CHECKPOINT" in caplog.text
        assert torch.equal(other.weight, good["model"]["weight"])
        caplog.clear()

    refused(lambda data: data["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)))
    refused(lambda data: data.pop("optimizer"))
    refused(lambda data: data["model"].pop("weight"))
    refused(lambda data: data["model"].update(weight=good["model"]["weight"].double()))
    refused(lambda data: data["model"]["weight"].fill_(float("inf")))


def test_weights_of_another_shape_are_another_model(tmp_path: Path) -> None:
    SafeCheckpointer(nn.Linear(3, 2), str(tmp_path)).save("model_0000000")
    other: Tensor = (layer := nn.Linear(4, 2)).weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"weight: \(2, 3\) in the checkpoint, \(2, 4\) now"):
        SafeCheckpointer(layer, str(tmp_path)).resume_or_load("")
    assert torch.equal(layer.weight, other)


class Pair(nn.Module):
    """Two layers, one of them frozen, that are registered in the order of `names`."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(3, 2) if name == "first" else nn.Linear(2, 3))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def reference_form(model: nn.Module) -> dict[str, Any]:
    """A state with one group for each parameter and without names, whose moments tell the parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": [p]} for p in parameters], lr=0.1)
    sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = optimizer.state_dict()
    for number, entry in state["state"].items():
        entry["exp_avg"].fill_(number)
        entry["step"] = 5  # as PyTorch counted before 1.12
    return state


def test_one_group_for_each_parameter_is_named_by_the_order_of_the_saved_weights() -> None:
    saved, model = Pair("first", "second"), Pair("second", "first")
    state = with_names(reference_form(saved), saved.state_dict(), model)
    groups = [{"params": [pair for pair in model.named_parameters() if pair[1].requires_grad]}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    optimizer.load_state_dict(check_optimizer_state(optimizer, state, "optimizer"))
    means = {
        name: float(optimizer.state[p]["exp_avg"].mean()) for name, p in model.named_parameters() if p.requires_grad
    }
    assert means == {"first.weight": 0, "first.bias": 1, "second.weight": 2, "second.bias": 3}
    assert all(float(entry["step"]) == 5 for entry in optimizer.state.values())


def test_states_that_cannot_be_named_stay_as_they_are() -> None:
    model = Pair("first", "second")
    state = reference_form(model)
    named = with_names(state, model.state_dict(), model)
    assert "param_names" not in state["param_groups"][0] and with_names(named, model.state_dict(), model) is named
    assert with_names(state, {}, model) is state
    assert with_names(None, {}, model) is None and with_names({"param_groups": [1]}, {}, model) == {"param_groups": [1]}
    together = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    assert with_names(together, model.state_dict(), model) is together
