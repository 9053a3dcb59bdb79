"""The official Cityscapes scripts (the package cityscapesscripts), called without files and settings of their own."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from mask2former.evaluation.old_numpy import give_old_numpy

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

    The scripts add floats picture after picture. Remembering them, instead of adding up per process, gives the same
    last digit however the pictures are spread over processes.
    """

    def __init__(self) -> None:
        self.values: list[float] = []

    def __iadd__(self, value: float) -> Additions:
        self.values.append(value)
        return self
