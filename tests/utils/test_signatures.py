import logging
from typing import Any

import pytest
from detectron2.config import configurable
from torch import nn

from mask2former.utils.signatures import accepted, fitting


def test_only_named_keywords_are_accepted() -> None:
    assert accepted(lambda a, *, b=1: None, {"b": 1, "c": 2}) == {"b": 1}
    assert accepted(lambda **options: None, {"b": 1, "c": 2}) == {"b": 1, "c": 2}
    assert accepted(lambda *b: None, {"b": 1}) == {}


def test_a_module_takes_what_its_forward_takes() -> None:
    class Head(nn.Module):
        def forward(self, x: Any, mask: Any = None) -> Any:
            return x

    assert accepted(Head(), {"mask": 1, "frames": 2}) == {"mask": 1}
    assert accepted(Head().forward, {"mask": 1, "frames": 2}) == {"mask": 1}


def test_a_narrow_subclass_gets_no_optional_arguments(caplog: pytest.LogCaptureFixture) -> None:
    class Base:
        @configurable
        def __init__(self, *, a: int, extra: int = 0) -> None: ...

    class Narrow(Base):
        @configurable
        def __init__(self, *, a: int) -> None: ...

    class Open(Base):
        @configurable
        def __init__(self, *, a: int, **others: Any) -> None: ...

    with caplog.at_level(logging.WARNING):
        assert fitting(Base, {"a": 1, "extra": 2}, {"extra": 0}) == {"a": 1, "extra": 2}
        assert fitting(Open, {"a": 1, "extra": 2}, {"extra": 0}) == {"a": 1, "extra": 2}
        assert fitting(Narrow, {"a": 1, "extra": 0}, {"extra": 0}) == {"a": 1}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert fitting(Narrow, {"a": 1, "extra": 2}, {"extra": 0}) == {"a": 1}
    assert "Narrow takes no extra: its value 2 has no effect" in caplog.text
