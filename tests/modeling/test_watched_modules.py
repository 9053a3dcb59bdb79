"""Changes of modules that a captured network must notice, and those that it need not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.prepared import is_hooked
from mask2former.modeling.watched_modules import WatchedModules


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.calls = nn.Linear(3, 3), nn.BatchNorm1d(3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen_first = True  # an attribute that the first call adds
        return self.norm(self.linear(x))


class Other(nn.Linear):
    pass


def model() -> nn.Module:
    return nn.Sequential(Block(), nn.ReLU(), nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2, bias=False)}))


def exchange(block: nn.Module) -> None:
    block.linear = nn.Linear(3, 3)


def add(block: nn.Module) -> None:
    block.another = nn.Identity()


def to_other_class(block: nn.Module) -> None:
    block.linear.__class__ = Other


def hook(block: nn.Module) -> None:
    block.linear.register_forward_hook(lambda *_: None)


def hook_before(block: nn.Module) -> None:
    block.register_forward_pre_hook(lambda *_: None)


def own_forward(block: nn.Module) -> None:
    block.norm.forward = lambda x: x


def own_method_of_another(block: nn.Module) -> None:
    block.linear.reset_parameters = lambda: None


def compile_call(block: nn.Module) -> None:
    block._compiled_call_impl = lambda x: x


def train_a_part(block: nn.Module) -> None:
    block.norm.train()


STRUCTURE: list[Callable[[nn.Module], None]] = [
    *(exchange, add, to_other_class, hook, hook_before, own_forward, own_method_of_another, compile_call, train_a_part),
    lambda block: delattr(block, "norm"),
]


@pytest.mark.parametrize("change", STRUCTURE)
def test_changes_of_modules_are_noticed(change: Callable[[nn.Module], None]) -> None:
    watched_model = model().eval()
    watched = WatchedModules([watched_model], is_hooked)
    assert watched.have_same_structure() and watched.have_same_addresses()
    change(watched_model[0])
    assert not watched.have_same_structure()
    assert not watched.have_same_structure()
    assert WatchedModules([watched_model], is_hooked).have_same_structure()


def test_a_hook_that_is_gone_is_noticed() -> None:
    watched_model = model()
    handle = watched_model[0].register_forward_hook(lambda *_: None)
    watched = WatchedModules([watched_model], is_hooked)
    handle.remove()
    assert not watched.have_same_structure()


def test_a_method_of_a_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = WatchedModules([model()], is_hooked)
    monkeypatch.setattr(Block, "forward", lambda self, x: x)
    assert not watched.have_same_structure()
    monkeypatch.undo()
    assert watched.have_same_structure()


def test_attributes_that_a_call_adds_do_not_count() -> None:
    watched_model = model().eval()
    watched = WatchedModules([watched_model], is_hooked)
    watched_model[0](torch.ones(2, 3))
    assert watched.have_same_structure() and watched.have_same_addresses()


def test_addresses_tell_exchanged_weights() -> None:
    watched_model = model()
    block, watched = watched_model[0], WatchedModules([watched_model], is_hooked)
    with torch.no_grad():
        block.linear.weight.mul_(2)
    assert watched.have_same_addresses()
    before = block.linear.weight.data
    block.linear.weight.data = before.clone()
    assert not watched.have_same_addresses()
    block.linear.weight.data = before
    assert watched.have_same_addresses()
    block.norm.running_mean = torch.zeros(3)
    assert not watched.have_same_addresses() and watched.have_same_structure()


def test_weights_without_a_value_may_get_one() -> None:
    watched_model = model()
    watched = WatchedModules([watched_model], is_hooked)
    watched_model[2]["b"].bias = nn.Parameter(torch.zeros(2))
    assert not watched.have_same_addresses()


def test_the_state_has_numbers() -> None:
    watched_model = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(2, affine=False), nn.ReLU())
    watched = WatchedModules([watched_model], is_hooked, numbers=("p", "momentum"))
    assert watched.state().numbers == [0.1, 0.1]
    watched_model[0].p, watched_model[1].momentum = 0.5, 0.01
    assert watched.have_same_structure() and watched.state().numbers == [0.5, 0.01]
    assert WatchedModules([watched_model], is_hooked).state().numbers == []
