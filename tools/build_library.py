"""A small make for one shared library: compiles in parallel, and only what changed. Standard library only.

``tools/build_ops.py`` says what to compile and how; this runs the compilers.
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
    """A compiler ended with an error, which was shown. The message says which file it was."""


@dataclass(frozen=True)
class Library:
    """How to make the shared library ``path``. All paths are relative to the directory in which the commands run.

    ``commands`` maps each object file to its (source file, command); ``headers`` are the files that any source may
    include; ``link`` is the command that makes the library from the objects.
    """

    path: Path
    commands: Mapping[Path, tuple[Path, tuple[str, ...]]]
    headers: tuple[Path, ...]
    link: tuple[str, ...]


def jobs() -> int:
    """How many compilers run at a time: MAX_JOBS, or the cores that this process may use."""
    given = os.environ.get("MAX_JOBS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(given)) if given.isdigit() else cores


def bring_up_to_date(library: Library, root: Path, name: str, say: Say) -> bool:
    """Compile and link what is older than its sources or was made by another command.

    Args:
        library: what to make.
        root: the directory in which the commands run.
        name: how messages call the library.
        say: prints a line.

    Returns:
        False when there was nothing to do.

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
    """Copy to ``directory``, by renaming: a process that has the old file loaded keeps it."""
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
    """What the result depends on: not on how many threads made it."""
    return shlex.join(word for word in command if not word.startswith("--threads="))


def _is_current(target: Path, command: Sequence[str], inputs: Iterable[Path]) -> bool:
    """True when this command made ``target`` from ``inputs`` that have not changed since."""
    note = _note(target)
    if not target.is_file() or not note.is_file() or note.read_text("utf-8") != _signature(command):
        return False
    return all(path.stat().st_mtime <= target.stat().st_mtime for path in inputs)


def _execute(target: Path, command: Sequence[str], root: Path, what: str, say: Say) -> None:
    """Run one compiler; the note of its command comes last, so that an interrupted run counts for nothing."""
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
    os.utime(target, (start, start))  # so that a file edited meanwhile is newer
    _note(target).write_text(_signature(command), "utf-8")
