"""What a case may end with: a result, or an error that names the file or key. All else is a finding."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from mask2former.errors import BadRecordError, CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[2]
_EXPLAINED = (BadRecordError, CheckpointError, ConfigError)
_KEY = re.compile(r"\b[A-Z][A-Z0-9_]+(\.[A-Z0-9_]+)+\b")  # of a config
_FRAMES = 5


class Finding(Exception):
    """The program did what it must not do."""


@dataclass
class Outcome:
    """How an attempt ended: with a value, or with an error that is explained."""

    value: Any = None
    error: Exception | None = None

    @property
    def accepted(self) -> bool:
        """Return whether there was no error."""
        return self.error is None


@dataclass
class Case:
    """One case of a kind.

    Attributes:
        seed: of the case.
        random: the only source of randomness.
        directory: an empty directory; nothing may be written elsewhere.
        names: further names that an error may give, beside those of the files in `directory`.
        accepted: whether anything was accepted.
        refused: the errors that explained themselves.
    """

    seed: int
    random: Random
    directory: Path
    names: tuple[str, ...] = ()
    accepted: bool = False
    refused: list[str] = field(default_factory=list)

    def attempt(self, function: Callable[..., Any], *args: Any, **options: Any) -> Outcome:
        """Call a function as a user would; an error that explains nothing is raised again."""
        try:
            value = function(*args, **options)
        except Exception as error:
            if not is_explained(error, self.known_names()):
                raise
            self.refused.append(str(error))
            return Outcome(error=error)
        self.accepted = True
        return Outcome(value)

    def known_names(self) -> list[str]:
        """Return the names of the files and directories of the case."""
        return [path.name for path in self.directory.rglob("*")] + list(self.names)


def is_explained(error: BaseException, names: Iterable[str]) -> bool:
    """Return whether an error is one of this project's, or names the file or key that is wrong.

    Subclasses of ValueError from elsewhere (UnicodeDecodeError, JSONDecodeError, ...) are not: nobody looked at them.
    """
    if isinstance(error, _EXPLAINED):
        return True
    text = str(error)
    named = any(name in text for name in names) or _KEY.search(text) is not None
    if isinstance(error, OSError):
        return named or bool(error.filename) or "/" in text
    ours = type(error) is ValueError or type(error).__module__.startswith("mask2former")
    return isinstance(error, ValueError) and ours and named


def require(condition: object, text: str) -> None:
    """Raise a finding unless the condition holds."""
    if not condition:
        raise Finding(text)


def check_finite(value: Any, what: str) -> None:
    """Raise a finding for NaN or infinity in nested results, arrays and tensors."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            check_finite(entry, f"{what} {key}")
    elif isinstance(value, (list, tuple)):
        for entry in value:
            check_finite(entry, what)
    elif isinstance(value, torch.Tensor):
        require(not value.is_floating_point() or bool(torch.isfinite(value).all()), f"{what} is not finite")
    elif isinstance(value, np.ndarray):
        require(value.dtype.kind != "f" or bool(np.isfinite(value).all()), f"{what} is not finite")
    elif isinstance(value, float):
        require(math.isfinite(value), f"{what} is {value}")


def describe(error: BaseException) -> tuple[str, str]:
    """Return a text about an exception, and the signature by which equal findings are counted together."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    own = [f"{_short(f.filename)} {f.name}" for f in frames if f"{ROOT}/mask2former" in f.filename]
    message = " ".join(str(error).split())
    title = f"{type(error).__name__}: {message[:300]}"
    if isinstance(error, Finding):
        signature = re.sub(r"[\d.]+", "N", message[:60])
    else:
        signature = f"{type(error).__name__} in {own[-1] if own else lines[-1]}"
    return "\n".join([title, *(f"    {line}" for line in lines[-_FRAMES:])]), signature


def _short(file: str) -> str:
    return file.replace(f"{ROOT}/", "").rpartition("site-packages/")[2]
