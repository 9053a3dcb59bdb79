"""The official Cityscapes scripts: loading them, their settings, and what they need of an older NumPy."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np


def give_old_numpy(module: ModuleType) -> None:
    """Let `module`, which says `import numpy as np`, find names there that NumPy has dropped; only in that module."""
    if not isinstance(getattr(module, "np", None), _OldNumpy):
        module.np = _OldNumpy()  # type: ignore[attr-defined]


def _in1d(values: Any, wanted: Any, invert: bool = False) -> np.ndarray:
    return np.isin(np.ravel(values), wanted, invert=invert)


class _OldNumpy:
    dropped: dict[str, Any] = {"in1d": _in1d, "float": float, "int": int, "bool": bool}

    def __getattr__(self, name: str) -> Any:
        return self.dropped[name] if name in self.dropped else getattr(np, name)


_FOLDER = "cityscapesscripts.evaluation"


def load_script(name: str) -> ModuleType:
    """The evaluation script `name`, or the table of labels for "labels".

    Raises ValueError when cityscapesScripts is not installed.
    """
    path = "cityscapesscripts.helpers.labels" if name == "labels" else f"{_FOLDER}.{name}"
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise ValueError(
            f"the Cityscapes evaluation needs cityscapesScripts ({error}): "
            "pip install cityscapesscripts (or pip install 'mask2former[cityscapes]')"
        ) from error
    if hasattr(module, "np"):
        give_old_numpy(module)
    return module


def script_settings(script: ModuleType) -> Any:
    """A copy of a script's settings that neither prints nor writes."""
    settings = copy.copy(script.args)
    settings.quiet, settings.JSONOutput, settings.colorized = True, False, False
    return settings


@contextlib.contextmanager
def script_errors(path: str) -> Iterator[None]:
    """Turn what ends the process in a script, after a printed message, into a ValueError about the file `path`."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as error:
        raise ValueError(f"{path}: cityscapesScripts says: {printed.getvalue().strip()}") from error


class Additions:
    """A number that remembers what is added to it.

    The scripts add floats image after image. Remembering them, instead of adding up per process, gives the same
    last digit however the images are spread over processes.
    """

    def __init__(self) -> None:
        self.values: list[float] = []

    def __iadd__(self, value: float) -> Additions:
        self.values.append(value)
        return self
