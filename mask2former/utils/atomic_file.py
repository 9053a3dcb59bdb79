"""Atomic writes, which leave a file complete or absent, errors that name it, and what killed writers left."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)  # as `atomic_write` names them
_NAME_PART = 40  # characters of a file's name in that of its temporary file


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary binary file that is renamed to `path` when it is complete; on an error it is removed.

    Args:
        path: path of the file.
        durable: wait until the disk has it, so that it survives a power failure. Without, many small files are
            written several times as fast: for those that are checked and made again.

    Raises:
        OSError: the file cannot be written (a full disk, a read-only directory, ...); the error names `path`.
    """
    path = Path(path).expanduser()
    with naming_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, release = _locked_temporary(path)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            _publish(temporary, path, durable)
        except BaseException:  # also on Ctrl-C: no truncated file may remain
            temporary.unlink(missing_ok=True)
            raise
        finally:
            release()


@contextlib.contextmanager
def naming_file(path: str | os.PathLike[str], remedy: str = "") -> Iterator[None]:
    """Name the file in an OSError of its writing, which names none or a temporary one, and add what to do.

    Errors of writing that `torch.save` hides behind one of its own are told too.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        if cause.filename is not None and not _is_part(Path(os.fsdecode(cause.filename)), Path(path)):
            raise
        text = os.strerror(cause.errno)
        raise OSError(cause.errno, f"{text}; {remedy}" if remedy else text, str(path)) from error


def _is_part(named: Path, path: Path) -> bool:
    """Return whether an error that names a file is about writing `path`: it, a directory of it, or a temporary file."""
    return named == path or named in path.parents or (named.parent == path.parent and named.suffix == ".tmp")


def check_writable(path: str | os.PathLike[str], what: str, *, directory: bool) -> None:
    """Check that results can be written, before the work that makes them; leaves nothing behind.

    Args:
        path: file or directory that will be written.
        what: the argument or key that names it, for the message.
        directory: whether `path` is a directory.

    Raises:
        OSError: it cannot be written (below a file, read-only, a full disk, a name too long, a file that is a
            directory, ...); the error names `path` and the system's reason.
    """
    path = Path(path)
    place = path if directory else path.parent
    with naming_file(path, f"choose another {what}"):
        if place.exists() and not place.is_dir():
            raise OSError(errno.ENOTDIR, "", str(place))
        missing = [parent for parent in (place, *place.parents) if not os.path.lexists(parent)]
        try:
            place.mkdir(parents=True, exist_ok=True)
            if not directory:
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISDIR(path.stat().st_mode):
                        raise OSError(errno.EISDIR, "", str(path))
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(4096))  # a full disk lets files be made, but not filled
                file.flush()
        finally:
            for parent in missing:
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _locked_temporary(path: Path) -> tuple[Path, Callable[[], None]]:
    """Create a temporary file beside `path`, locked until the returned function is called or the process ends."""
    while True:
        # Not the complete name: what is added to it would make a long one too long.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:_NAME_PART]}.", suffix=".tmp", dir=path.parent)
        if fcntl is None:  # an open file cannot be renamed there
            os.close(descriptor)
            return Path(name), lambda: None
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink or os.path.exists(name):  # else `remove_abandoned` came before the lock
            return Path(name), functools.partial(os.close, descriptor)
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file; return whether it is locked now.

    Unlike `locks.Lock` it is a lock of the open file (`flock`), not of the process: it outlasts the closing of another
    descriptor of the file, and keeps another thread from removing it.
    """
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


def _publish(temporary: Path, path: Path, durable: bool) -> None:
    umask = os.umask(0)
    os.umask(umask)
    with contextlib.suppress(OSError):  # some network mounts have no permissions
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp creates files that only the owner can read
    os.replace(temporary, path)
    if durable and hasattr(
        os, "O_DIRECTORY"
    ):  # the new name must survive a power failure too, if the file system allows
        with contextlib.suppress(OSError):
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
