"""Without damage, the files of every kind are accepted: a finding is due to the damage, and not to the harness."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from .judgment import Case
from .mutation import write_json


def same(random: Random, content: Any, *args: Any) -> Any:
    """Stand for a function that damages content."""
    return content


def nothing(random: Random, *args: Any) -> Any:
    """Stand for a function that damages files, or the content that it gets."""
    return []


def plain_json(random: Random, tree: Any) -> bytes:
    return write_json(Random(1), tree)


DAMAGE: dict[str, dict[str, Callable[..., Any]]] = {
    "coco": {"mutate": same, "write_json": plain_json},
    "ytvis": {"mutate": same, "write_json": plain_json},
    "results": {"mutate": same, "write_json": plain_json},
    "formats": {"_change": nothing},
    "journals": {"_change": nothing},
    "resume": {"mutate": same, "_change_tensor": nothing, "_change_directory": nothing},
    "configs": {"_change_value": nothing, "_write_text": lambda random, file, text: file.write_text(text)},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_intact_files_are_accepted(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module(f"tests.fuzz.{kind}")
    for name, stand_in in DAMAGE[kind].items():
        monkeypatch.setattr(module, name, stand_in)
    (tmp_path / "constant").mkdir()
    state = module.prepare(tmp_path / "constant")
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        case = Case(seed, Random(seed), tmp_path / str(seed))
        module.run(state, case)
        assert case.accepted
        assert not case.refused
