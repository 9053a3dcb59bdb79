"""What PyTorch does with the code that runs."""

from __future__ import annotations

import pytest
import torch

from mask2former.utils.tracing import is_exporting


def test_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_exporting()
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True, raising=False)
    assert is_exporting()
    monkeypatch.delattr(torch.compiler, "is_exporting")  # as in PyTorch 2.6
    assert not is_exporting()
