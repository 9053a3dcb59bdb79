"""Dataset names that tests of this directory register are removed after each test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _forget_names(forget_own_names: None) -> None:
    """Remove registered names after every test of this directory."""
