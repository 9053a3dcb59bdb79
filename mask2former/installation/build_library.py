"""Incremental, parallel build of one shared library. Standard library only.

``build_ops.py`` decides what to compile and how; this module runs the compilers.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]


class CompileError(Exception):
    """A compiler failed; its output was printed. The message names the source file."""


@dataclass(frozen=True)
class Library:
    """Build rules of the shared library ``path``. All paths are relative to the directory in which the commands run.

    ``commands`` maps each object file to its (source file, command); ``headers`` are the files that any source may
    include; ``link`` is the command that links the library.
    """

    path: Path
    commands: Mapping[Path, tuple[Path, tuple[str, ...]]]
    headers: tuple[Path, ...]
    link: tuple[str, ...]


def jobs() -> int:
    """Return the number of parallel compilers: MAX_JOBS, or the number of cores available to this process."""
    max_jobs = os.environ.get("MAX_JOBS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(max_jobs)) if max_jobs.isdigit() else cores


def bring_up_to_date(library: Library, root: Path, name: str, say: Say) -> bool:
    """Compile and link targets that are older than their sources or were built by a different command.

    Args:
        library: the build rules.
        root: the directory in which the commands run.
        name: name of the library in messages.
        say: prints a line.

    Returns:
        False if everything was up to date.

    Raises:
        CompileError: a compiler failed.
    """
    stale = {
        path: (source, command)
        for path, (source, command) in library.commands.items()
        if not _is_current(root / path, command, [root / file for file in (source, *library.headers)])
    }
    if not stale and _is_current(root / library.path, library.link, [root / path for path in library.commands]):
        return False
    names = [source.name for source, _ in stale.values()] or [library.path.name]
    say(f"{name}: compiling {', '.join(names)}")
    pool = ThreadPoolExecutor(jobs())
    try:
        runs = [
            pool.submit(_execute, root / path, command, root, f"compiling {source}", say)
            for path, (source, command) in stale.items()
        ]
        for run in runs:
            run.result()
    finally:
        pool.shutdown(cancel_futures=True)
    _execute(root / library.path, library.link, root, f"linking {library.path.name}", say)
    return True


def put(library: Path, directory: Path) -> Path:
    """Copy a library to ``directory`` by an atomic rename, so that processes that loaded the old file keep it."""
    target = directory / library.name
    if not target.is_file() or target.stat().st_mtime != library.stat().st_mtime:
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".new")
        shutil.copy2(library, unfinished)
        os.replace(unfinished, target)
    return target


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".command")


def _signature(command: Sequence[str]) -> str:
    """Return the part of the command that affects the result, without the number of threads."""
    return shlex.join(word for word in command if not word.startswith("--threads="))


def _is_current(target: Path, command: Sequence[str], inputs: Iterable[Path]) -> bool:
    """Return whether this command built ``target`` from ``inputs`` that have not changed since."""
    note = _note(target)
    if not target.is_file() or not note.is_file() or note.read_text("utf-8") != _signature(command):
        return False
    return all(path.stat().st_mtime <= target.stat().st_mtime for path in inputs)


def _execute(target: Path, command: Sequence[str], root: Path, what: str, say: Say) -> None:
    """Run one compiler; its command is recorded last, so that an interrupted run is repeated."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _note(target).unlink(missing_ok=True)
    start = time.time()
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace", check=False)
    output = (done.stdout + done.stderr).strip().splitlines()[-25:]
    if done.returncode != 0:
        say("\n".join([shlex.join(command), *output]))
        raise CompileError(f"{what} failed, see above")
    if output:
        say("\n".join(output))
    os.utime(target, (start, start))  # so that a file edited during the compilation is newer
    _note(target).write_text(_signature(command), "utf-8")
