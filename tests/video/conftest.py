"""Dataset names that tests of this directory register are forgotten after each."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _forget_names(forget_own_names: None) -> None:
    """For every test of this directory."""
