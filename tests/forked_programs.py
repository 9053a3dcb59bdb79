"""Programs of tests that begin where one process has imported what they need: that takes seconds, and a fork none.

Each program has a process, a working directory and output of its own, as one that is started has. The process that is
forked has imported modules and done nothing else, so that no program sees what another one has left.

    python -m tests.forked_programs MODULE ...    # then a line of JSON for each program; see `ForkedPrograms.run`
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]


class ForkedPrograms:
    """A process that has imported modules, and is forked for each program; Linux and macOS only.

    Args:
        modules: names of what it imports.
        environment: variables besides those of this process.
    """

    def __init__(self, modules: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_programs", *modules],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> ForkedPrograms:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def run(self, module: str, arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run `main(arguments)` of a module, which returns the exit status; return status, stdout and stderr.

        Raises:
            RuntimeError: the process that is to be forked has ended; its stderr says why.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as directory:
            files = [Path(directory, name) for name in ("stdout", "stderr")]
            request = {"module": module, "arguments": list(arguments), "cwd": str(cwd), "files": list(map(str, files))}
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
            if not answer:
                raise RuntimeError(f"the process that is forked has ended with status {self._process.wait()}")
            return subprocess.CompletedProcess([module, *arguments], int(answer), *(f.read_text() for f in files))


def main(modules: Sequence[str]) -> NoReturn:
    """Import modules, then run the programs that standard input names; answer each with its exit status."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes there
    for name in modules:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    os._exit(0)  # without taking down what was imported, which takes seconds


def _run(request: dict[str, Any]) -> NoReturn:
    """Run a program in a fork, and end the process."""
    status: int | str | None = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        files = [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for file in request["files"]]
        for number, descriptor in enumerate((null, *files)):
            os.dup2(descriptor, number)
        os.chdir(request["cwd"])
        status = importlib.import_module(request["module"]).main(request["arguments"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status or 0))


if __name__ == "__main__":
    main(sys.argv[1:])
