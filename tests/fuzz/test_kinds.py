"""Many damaged files of each kind: each is used or refused with an error that explains it, and nothing else happens.

A failure names the case: `python -m tests.fuzz KIND SEED` repeats it, `make fuzz N=10000` looks for more.
"""

from __future__ import annotations

import pytest

from .core import KINDS, check, run_cases

CASES = 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cases(kind: str) -> None:
    results = list(run_cases(kind, range(CASES)))
    assert [result.seed for result in results] == list(range(CASES))
    check(results)
    # Neither all nor nothing is refused: the damage reaches beyond the first check.
    assert 0 < sum(result.accepted for result in results) < CASES
