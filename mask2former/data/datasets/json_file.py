"""Reading json files that somebody else made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from ..errors import BadRecordError


def read_json_object(path: str, lists: Sequence[str] = ()) -> dict[str, Any]:
    """Read a json file that holds an object.

    Args:
        path: file name, or any address that iopath's PathManager knows.
        lists: keys that must be there and hold lists.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: no json, another kind of json, or a key is missing.
    """
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise BadRecordError(path, f"cannot be read: {error}") from error
    except RecursionError as error:
        raise BadRecordError(path, "the json is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise BadRecordError(path, f"is not a json file: {error}") from error
    if not isinstance(content, dict):
        raise BadRecordError(path, f"holds a json {type(content).__name__}, an object is needed")
    for key in lists:
        if not isinstance(content.get(key), list):
            state = "has no" if key not in content else "has no list under"
            raise BadRecordError(path, f"{state} {key!r}")
    return content
