"""Locks of what one program at a time may write: an output directory, a video, the journal of a video."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import weakref
from pathlib import Path
from typing import Any

from ..errors import InUseError
from .atomic_file import naming_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
_held: dict[Path, _Entry] = {}


class _Entry:
    """A lock of this process: the open file, and how many `Lock`s share it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.count, self.pid = descriptor, 1, os.getpid()


class Lock:
    """Holds the lock file `path` until `release`, or until the object or the process is gone, however it ends.

    The operating system locks the file (POSIX record locks, which children do not inherit and most network file
    systems know), so that a lock of a killed program is free. The file names its owner for the message, and is removed
    at the release. Locks of one process do not exclude each other. Where the file system has no locks, the owner that
    the file names is looked for on this machine, and a warning is logged.

    Args:
        path: the lock file; its directory is created.
        what: what it protects, for messages.

    Raises:
        InUseError: another process holds it; the message names its host and process.
        OSError: the file cannot be written; the error names it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = Path(os.path.abspath(path))
        entry = _held.get(self.path)
        if entry is not None and entry.pid == os.getpid() and _is_current(entry.descriptor, self.path):
            entry.count += 1
        else:
            with naming_file(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                entry = _held[self.path] = _Entry(_acquire(self.path, what))
        self.release = weakref.finalize(self, _release, self.path, entry)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _acquire(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            _lock(descriptor, path, what)
            if _is_current(descriptor, path):  # else its owner removed it between our opening and locking
                owner = {"host": socket.gethostname(), "pid": os.getpid()}
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)  # Windows has no pwrite
                os.write(descriptor, json.dumps(owner).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path, what: str) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, "no locks")
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(descriptor)
        held = error.errno in _HELD_ELSEWHERE
        if held or _runs_here(owner):
            process, host = owner.get("pid", "(unknown)"), owner.get("host", "an unknown host")
            # Without locks the number may have gone to another program since.
            doubt = "" if held else f" If that process is another program, delete {path}."
            raise InUseError(
                f"{what} is in use by process {process} on {host}: "
                f"wait for its end or stop it, or choose another output.{doubt}"
            ) from error
        where = "are noticed on one machine only" if os.name == "posix" else "are not noticed"
        text = "The file system of %s has no locks (%s): two programs that write there at a time %s."
        logger.warning(text, path, error, where)


def _owner(descriptor: int) -> dict[str, Any]:
    """Read who wrote the lock file; {} if that cannot be told."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        owner = json.loads(os.read(descriptor, 1000))
        if isinstance(owner, dict):
            return owner
    return {}


def _runs_here(owner: dict[str, Any]) -> bool:
    """Return whether an owner is another process of this machine that is alive."""
    pid = owner.get("pid")
    if (
        owner.get("host") != socket.gethostname()
        or type(pid) is not int
        or pid in (0, os.getpid())
        or os.name != "posix"
    ):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _release(path: Path, entry: _Entry) -> None:
    entry.count -= 1
    if entry.count or entry.pid != os.getpid():
        return
    if _is_current(entry.descriptor, path):
        with contextlib.suppress(OSError):
            path.unlink()  # while it is locked: who has opened it, will see that it is another file
    with contextlib.suppress(OSError):
        os.close(entry.descriptor)
    if _held.get(path) is entry:
        del _held[path]
