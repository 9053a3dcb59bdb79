"""Many damaged files of each kind: each is used or refused with an error that explains it, and nothing else happens.

A failure names the case: `python -m tests.fuzz KIND SEED` repeats it, `make fuzz N=10000` looks for more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked_programs import ForkedPrograms

from .core import KINDS, Result, check

CASES = 200


@pytest.fixture(scope="module")
def programs() -> Iterator[ForkedPrograms]:
    """Return a process that has imported the modules of all kinds."""
    with ForkedPrograms(["tests.fuzz.__main__", *(f"tests.fuzz.{kind}" for kind in KINDS)]) as programs:
        yield programs


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cases(kind: str, tmp_path: Path, programs: ForkedPrograms) -> None:
    # In a process of its own: PyTorch cannot train in forks of one in which it has trained on some devices.
    file = tmp_path / "results.json"
    done = programs.run("tests.fuzz.__main__", [kind, "--count", str(CASES), "--json", str(file)], tmp_path)
    assert file.is_file(), done.stderr
    results = [Result(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    assert [result.seed for result in results] == list(range(CASES))
    check(results)
    # Neither all nor nothing is refused: the damage reaches beyond the first check.
    assert 0 < sum(result.accepted for result in results) < CASES
