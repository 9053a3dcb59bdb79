from __future__ import annotations

import functools
import types

import pytest
from torch import nn

from mask2former.utils.overrides import as_written, extensible, unchanged


@extensible
class Base(nn.Module):
    def forward(self) -> int:
        return 1


class Sub(Base):
    def forward(self) -> int:
        return 2


def test_subclasses_and_objects() -> None:
    changed = Base()
    changed.forward = types.MethodType(lambda self: 3, changed)
    assert unchanged(Base(), Base, "forward")
    assert not unchanged(Sub(), Base, "forward") and not unchanged(changed, Base, "forward")
    assert not unchanged(nn.Identity(), Base, "forward")


def test_assignments_to_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.wraps(Base.forward)
    def wrapped(self: Base) -> int:
        return 4

    monkeypatch.setattr(Base, "forward", wrapped)
    assert not unchanged(Base(), Base, "forward")
    monkeypatch.undo()
    assert unchanged(Base(), Base, "forward")


def test_hooks() -> None:
    module = Base()
    assert as_written(module, Base, "forward")
    module.register_forward_pre_hook(lambda *_: None)
    assert not as_written(module, Base, "forward")
