"""Many damaged files of each kind: each is used or refused with an error that explains it, and nothing else happens.

A failure names the case: `python -m tests.fuzz KIND SEED` repeats it, `make fuzz N=10000` looks for more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .core import KINDS, Result, check

ROOT = Path(__file__).parents[2]
CASES = 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cases(kind: str, tmp_path: Path) -> None:
    # In a process of its own: PyTorch cannot train in forks of one in which it has trained on some devices.
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.fuzz", kind, "--count", str(CASES), "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert file.is_file(), done.stderr
    results = [Result(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    assert [result.seed for result in results] == list(range(CASES))
    check(results)
    # Neither all nor nothing is refused: the damage reaches beyond the first check.
    assert 0 < sum(result.accepted for result in results) < CASES
