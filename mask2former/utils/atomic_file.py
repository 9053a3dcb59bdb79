"""Atomic writes, which leave a file complete or absent, and the removal of what killed writers left."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)  # as `atomic_write` names them


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary binary file that is renamed to `path` when it is complete; on an error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, release = _locked_temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path)
    except BaseException:  # also on Ctrl-C: no truncated file may remain
        temporary.unlink(missing_ok=True)
        raise
    finally:
        release()


def _locked_temporary(path: Path) -> tuple[Path, Callable[[], None]]:
    """Create a temporary file beside `path`, locked until the returned function is called or the process ends."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        if fcntl is None:  # an open file cannot be renamed there
            os.close(descriptor)
            return Path(name), lambda: None
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink or os.path.exists(name):  # else `remove_abandoned` came before the lock
            return Path(name), functools.partial(os.close, descriptor)
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file; return whether it is locked now, by this process."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system has no locks
        return False
    return True


def remove_abandoned(directory: str | os.PathLike[str], names: re.Pattern[str]) -> list[Path]:
    """Remove the temporary files of `atomic_write` in a directory whose writer was killed.

    A file whose writer lives is locked and stays; so do all where the system has no file locks.

    Args:
        directory: need not exist; directories in it are left alone.
        names: the files that were being written, for example `.+\\.pth`; temporary files of others stay.

    Returns:
        The removed files.
    """
    removed = []
    for file in sorted(Path(directory).glob(".*.tmp")):
        match = _TEMPORARY.fullmatch(file.name)
        if match is None or not names.fullmatch(match[1]) or file.is_symlink() or not file.is_file():
            continue
        with contextlib.suppress(OSError), file.open("r+b") as stream:
            if _lock(stream.fileno()):
                file.unlink()
                removed.append(file)
    return removed


def _publish(temporary: Path, path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    with contextlib.suppress(OSError):  # some network mounts have no permissions
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp creates files that only the owner can read
    os.replace(temporary, path)
    if hasattr(os, "O_DIRECTORY"):  # the new name must survive a power failure too, if the file system allows
        with contextlib.suppress(OSError):
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
