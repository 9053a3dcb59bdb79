"""A short run of the chaos test, in a process of its own, as it forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
@pytest.mark.parametrize("arguments", [("--seed", "7"), ("--seed", "3", "--late")], ids=" ".join)
def test_killed_trainings_end_as_uninterrupted_ones(arguments: tuple[str, ...]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, CHAOS, "--kills", "12", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 trainings ended differently" in done.stdout
