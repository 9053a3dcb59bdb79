"""The harness finds what it is for, and says how to repeat it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mask2former.errors import BadRecordError, CheckpointError, ConfigError

from . import guard
from .core import check, in_children
from .judgment import Case, check_finite, is_explained, require
from .mutation import mutate, mutate_bytes, write_json


def results_of(run: Callable[[Case], object], tmp_path: Path, count: int = 1) -> list[tuple[int, str]]:
    return [(result.seed, result.finding) for result in in_children("kind", run, range(count), tmp_path)]


def crash_at_two(case: Case) -> None:
    if case.seed == 2:
        ctypes.string_at(0)


def test_a_crash_is_a_finding_and_the_others_run(tmp_path: Path) -> None:
    results = results_of(crash_at_two, tmp_path, 5)
    assert [seed for seed, _ in results] == [0, 1, 2, 3, 4]
    assert [bool(finding) for _, finding in results] == [False, False, True, False, False]
    assert "SIGSEGV" in results[2][1] and "crash_at_two" in results[2][1]


def bare_error(case: Case) -> None:
    case.attempt(np.zeros(6).reshape, (4, 2))


def write_elsewhere(case: Case) -> None:
    (case.directory.parent.parent / "elsewhere").write_text("x")


def swallowed(case: Case) -> None:
    try:
        subprocess.run(["true"])
    except BaseException:
        return


def spin(case: Case) -> None:
    while True:
        pass


FAULTS: dict[str, Callable[[Case], object]] = {
    "ValueError: cannot reshape": bare_error,
    "MemoryError": lambda case: bytearray(2 * guard.MEMORY),
    "writes '": write_elsewhere,
    "starts a program": swallowed,
    "more than 0.3 s of CPU time": spin,
    "status 3": lambda case: os._exit(3),
    "AP is nan": lambda case: check_finite({"AP": float("nan")}, ""),
    "not finite": lambda case: check_finite([np.array([1.0, np.inf])], "a mask"),
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what is found in one run of all faults, each a case."""
    root = tmp_path_factory.mktemp("faults") / "root"
    root.mkdir()
    faults = list(FAULTS.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "CPU_SECONDS", 0.3)
        patch.setattr("tests.fuzz.core.CPU_SECONDS", 0.3)
        results = results_of(lambda case: faults[case.seed](case), root, len(faults))
    return {text: finding for text, (_, finding) in zip(FAULTS, results, strict=True)}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_found(text: str, findings: dict[str, str]) -> None:
    assert text in findings[text]


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (BadRecordError("a.json", "x"), True),
        (CheckpointError("x"), True),
        (ConfigError("x"), True),
        (ValueError("a.json: the width is 0"), True),
        (ValueError("SOLVER.MAX_ITER is 0"), True),
        (FileNotFoundError(2, "No such file", "b.png"), True),
        (OSError("broken data stream"), False),
        (ValueError("cannot reshape array"), False),
        (UnicodeDecodeError("utf-8", b"a.json", 0, 1, "a.json"), False),
        (KeyError("a.json"), False),
        (TypeError("a.json"), False),
        (RecursionError("a.json"), False),
        (AssertionError("a.json"), False),
    ],
)
def test_which_errors_explain_something(error: Exception, explained: bool) -> None:
    assert is_explained(error, ["a.json"]) is explained


def test_a_report_repeats_the_case(tmp_path: Path) -> None:
    def run(case: Case) -> None:
        require(False, f"{case.random.getrandbits(1)} pixels")

    results = list(in_children("coco", run, range(7), tmp_path))
    with pytest.raises(AssertionError, match=r"7 findings of 1 sorts in 7 cases\n\[7 times\] coco 0: ") as caught:
        check(results)
    assert "repeat: python -m tests.fuzz coco 0" in str(caught.value)


def test_damage_depends_on_the_seed_alone(tmp_path: Path) -> None:
    tree = {"images": [{"id": 1, "size": [3.5, 4]}], "name": "x"}

    def run(case: Case) -> None:
        data = write_json(case.random, mutate(case.random, tree)) + mutate_bytes(case.random, bytes(range(200)))
        require(False, data.hex())

    first, second = (results_of(run, tmp_path, 20) for _ in range(2))
    assert first == second
    assert len({finding for _, finding in first}) > 15
    assert tree == {"images": [{"id": 1, "size": [3.5, 4]}], "name": "x"}
