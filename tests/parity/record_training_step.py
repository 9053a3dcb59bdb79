"""Record the training steps of `training_step.py` anew: `python -m tests.parity.record_training_step`.

Writes `data/training_steps.json` with what the present code computes, whatever it is, and prints what differs from the
file before, and what rounding could change on another machine. A difference means that training changed: the commit
that records it says why that is right.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from typing import Any

import torch

from tests.parity.training_step import RECORD, STEPS, differences, run

# Several hundred times what the order of sums changes: that much may not decide which queries, tokens or points count.
NOISE = 1e-12
ROOT = RECORD.parents[3]


def main() -> None:
    """Run every step, print what differs and write the file."""
    before: dict[str, Any] = json.loads(RECORD.read_text())["steps"] if RECORD.exists() else {}
    steps: dict[str, Any] = {}
    for name in STEPS:
        torch.manual_seed(1)  # not the tests' seed: what still depends on random numbers fails there
        steps[name] = run(name)
        if name in before:
            _show(f"{name}: values that differ from those before", differences(before[name], steps[name]))
        else:
            print(f"{name}: new")
        noisy = run(name, noise=NOISE)
        _show(f"{name}: values that depend on rounding", differences(steps[name], noisy))
    changed = _git("status", "--porcelain", "--", "mask2former")
    made_by = {"commit": _git("log", "-1", "--format=%H", "--", "mask2former"), "torch": torch.__version__}
    RECORD.write_text(json.dumps({"made_by": made_by, "steps": steps}, indent=1) + "\n")
    print(f"wrote {RECORD}, made by commit {made_by['commit']}")
    if changed:
        print(f"  with changes that are not committed:\n{changed}")


def _show(title: str, lines: Iterable[str], most: int = 20) -> None:
    lines = list(lines)
    print(f"{title}: {len(lines) or 'none'}")
    for line in lines[:most]:
        print(f"  {line}")
    if len(lines) > most:
        print(f"  and {len(lines) - most} more")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
