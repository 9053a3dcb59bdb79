"""Atomic writes, which leave a file complete or absent, and JSON files with errors that name the file."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..errors import BadRecordError

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


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file atomically; create its directory."""
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)


def write_json(
    path: str | os.PathLike[str], data: Any, *, nan: Literal["error", "null"] = "error", indent: int | None = None
) -> Path:
    """Write `data` as JSON, atomically.

    Args:
        path: path of the file.
        data: JSON values; scalars of NumPy and torch become numbers.
        nan: NaN and infinity, which JSON does not have, raise a ValueError ("error") or become null.
        indent: spaces for each level, for files that people read; None: all in one line.

    Raises:
        TypeError: an object that JSON cannot represent.
        ValueError: NaN or infinity, with `nan` "error".
    """
    content = _null_for_nan(data) if nan == "null" else data
    text = json.dumps(content, default=_number, allow_nan=False, indent=indent)
    return write_bytes(path, (text if indent is None else f"{text}\n").encode())


def _number(value: Any) -> bool | int | float:
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _null_for_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_null_for_nan(entry) for entry in value]
    number = _number(value) if isinstance(value, np.generic | Tensor) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def read_json(path: str | os.PathLike[str], purpose: str) -> Any:
    """Read a JSON file; `purpose` completes the error messages ("instance annotations").

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON.
    """
    try:
        return _parse_json(os.fspath(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{purpose}: {path} does not exist. Dataset paths are relative to DETECTRON2_DATASETS (default ./datasets)."
        ) from error
    except BadRecordError as error:
        raise ValueError(f"{purpose}: {error}; is the download complete?") from error


def short_path(path: str | os.PathLike[str]) -> str:
    """Return a path for messages: relative if it is below the working directory, else absolute."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def read_json_object(path: str, lists: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Args:
        path: file name, or any URL that iopath's PathManager supports.
        lists: keys that must be present and hold lists.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: not JSON, not an object, or a key is missing.
    """
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise BadRecordError(path, f"contains a JSON {type(content).__name__}, but must contain an object")
    for key in lists:
        if not isinstance(content.get(key), list):
            state = "has no" if key not in content else "has no list under"
            raise BadRecordError(path, f"{state} {key!r}")
    return content


def _parse_json(path: str) -> Any:
    """Read a JSON file; FileNotFoundError, or BadRecordError for what cannot be read or is not JSON."""
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise BadRecordError(path, f"cannot be read: {error}") from error
    except RecursionError as error:
        raise BadRecordError(path, "the JSON is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise BadRecordError(path, f"is not a JSON file: {error}") from error
