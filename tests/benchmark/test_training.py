"""A benchmark of training runs as trainings do."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest

from mask2former.benchmark import training


@pytest.mark.parametrize(("device", "calls"), [("cuda", ["one thread", "report"]), ("cpu", ["report"])])
def test_on_a_gpu_training_is_measured_with_one_thread(
    monkeypatch: pytest.MonkeyPatch, device: str, calls: list[str]
) -> None:
    made: list[str] = []

    def report(*_: Any) -> None:
        made.append("report")
        raise InterruptedError

    monkeypatch.setattr(training, "config_of", lambda *_: SimpleNamespace(MODEL=SimpleNamespace(DEVICE=device)))
    monkeypatch.setattr(training, "title", lambda *_: "")
    monkeypatch.setattr(training, "settings", lambda *_: {})
    monkeypatch.setattr(training, "use_one_thread", lambda: made.append("one thread"))
    monkeypatch.setattr(training, "Report", report)
    with pytest.raises(InterruptedError):
        training.run(Namespace(), "")
    assert made == calls
