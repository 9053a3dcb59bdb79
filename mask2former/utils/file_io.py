"""Files that are written atomically, and JSON files with errors that name the file."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..errors import BadRecordError, CheckpointError
from .atomic_file import atomic_write
from .downloads import is_download, open_path
from .text_files import expand_home


def write_bytes(path: str | os.PathLike[str], content: bytes, *, durable: bool = True) -> Path:
    """Write a file atomically; create its directory. `durable` as in `atomic_write`."""
    with atomic_write(path, durable=durable) as file:
        file.write(content)
    return Path(path).expanduser()


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


def is_special(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a pipe, socket or device, which may never end, and whose opening may wait for ever."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def read_json(path: str | os.PathLike[str], purpose: str) -> Any:
    """Read a JSON file; `purpose` completes the error messages ("instance annotations").

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON.
    """
    try:
        return parse_json(os.fspath(path))
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
        path: file name or URL; see `downloads.open_path`.
        lists: keys that must be present and hold lists.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: not JSON, not an object, or a key is missing.
    """
    content = parse_json(path)
    if not isinstance(content, dict):
        raise BadRecordError(path, f"contains a JSON {type(content).__name__}, but must contain an object")
    check_lists(path, content, lists)
    return content


def check_lists(path: str, content: Mapping[str, Any], lists: Sequence[str]) -> None:
    """Raise `BadRecordError` where a key of a file's object is missing, or holds no list."""
    for key in lists:
        if not isinstance(content.get(key), list):
            state = "has no" if key not in content else "has no list under"
            raise BadRecordError(path, f"{state} {key!r}")


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector of cycles, which JSON does not have, from looking through millions of new objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse_json(path: str) -> Any:
    """Read a JSON file in UTF-8, with or without byte order mark.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: it cannot be read or is not JSON.
    """
    try:
        path = expand_home(path)
        if is_special(path):
            raise BadRecordError(path, "is a pipe or device, not a JSON file")
        with open_path(path, "r", encoding="utf-8-sig") as file, _no_collection():
            return json.load(file)
    except BadRecordError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error) if is_download(path) else f"{path} does not exist") from error
    except CheckpointError as error:  # a URL that is refused, or its checksum
        raise BadRecordError(path, str(error)) from error
    except OSError as error:
        raise BadRecordError(path, f"cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise BadRecordError(path, "the JSON is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise BadRecordError(path, f"is not text in UTF-8 ({error}); save it as UTF-8") from error
    except ValueError as error:  # JSONDecodeError
        raise BadRecordError(path, f"is not a JSON file: {error}") from error
