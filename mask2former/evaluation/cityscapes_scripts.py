"""The official Cityscapes scripts: loading, settings, and compatibility with current NumPy."""

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
    """Provide names removed from NumPy to `module`, which does `import numpy as np`; no other module is affected."""
    if not isinstance(getattr(module, "np", None), _OldNumpy):
        module.np = _OldNumpy()  # type: ignore[attr-defined]


def _in1d(values: Any, test_values: Any, invert: bool = False) -> np.ndarray:
    return np.isin(np.ravel(values), test_values, invert=invert)


class _OldNumpy:
    dropped: dict[str, Any] = {"in1d": _in1d, "float": float, "int": int, "bool": bool}

    def __getattr__(self, name: str) -> Any:
        return self.dropped[name] if name in self.dropped else getattr(np, name)


_PACKAGE = "cityscapesscripts.evaluation"


def load_script(name: str) -> ModuleType:
    """Import the evaluation script `name`, or the table of labels for "labels".

    Raises ValueError when cityscapesScripts is not installed.
    """
    path = "cityscapesscripts.helpers.labels" if name == "labels" else f"{_PACKAGE}.{name}"
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise ValueError(
            f"Cityscapes evaluation requires cityscapesScripts ({error}): "
            "pip install cityscapesscripts (or pip install 'mask2former[cityscapes]')"
        ) from error
    if hasattr(module, "np"):
        give_old_numpy(module)
    return module


def script_settings(script: ModuleType) -> Any:
    """Return a copy of a script's settings that disables printing and writing."""
    settings = copy.copy(script.args)
    settings.quiet, settings.JSONOutput, settings.colorized = True, False, False
    return settings


@contextlib.contextmanager
def script_errors(path: str) -> Iterator[None]:
    """Convert the exit of a script, which prints its message first, to a ValueError about the file `path`."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as error:
        raise ValueError(f"{path}: cityscapesScripts failed: {printed.getvalue().strip()}") from error


class Additions:
    """A number that records what is added to it.

    The scripts add floats image by image. Recording the summands, instead of one sum per rank, makes the result
    independent of how images are distributed over ranks, to the last digit.
    """

    def __init__(self) -> None:
        self.values: list[float] = []

    def __iadd__(self, value: float) -> Additions:
        self.values.append(value)
        return self
