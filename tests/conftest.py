"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with larger real data beside the checkout; tests that want it skip when it is absent."""
    folder = Path(os.environ.get("MASK2FORMER_TEST_DATA", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}")
    return folder


@pytest.fixture
def forget_own_names() -> Iterator[None]:
    """Datasets that a test registers under its own names are gone after it."""
    from mask2former.data.datasets import own_names

    before = set(own_names._registered)
    yield
    for name in set(own_names._registered) - before:
        own_names.unregister(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip on machines without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
