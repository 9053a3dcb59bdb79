"""Programs that are forked have output, directory and exit status of their own, and leave nothing to the next one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.forked_programs import ForkedPrograms

NAME = "tests.test_forked_programs"
seen: list[str] = []


def main(arguments: Sequence[str]) -> int:
    """Be the program."""
    seen.append(arguments[0])
    print(seen, os.getcwd(), repr(sys.stdin.read()))
    if arguments[0] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if arguments[0] == "error":
        raise OSError("no such luck")
    if arguments[0] == "exit":
        sys.exit(3)
    return int(arguments[0] == "one")


def test_programs(tmp_path: Path) -> None:
    with ForkedPrograms(["json"]) as programs:
        for name, status in (("zero", 0), ("one", 1), ("error", 1), ("exit", 3), ("zero", 0)):
            done = programs.run(NAME, [name], tmp_path)
            assert (done.returncode, done.stdout) == (status, f"{[name]} {tmp_path} ''\n")
            assert ("OSError: no such luck" in done.stderr) == (name == "error")
        assert programs.run(NAME, ["killed"], tmp_path).returncode == -signal.SIGKILL
