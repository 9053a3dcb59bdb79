"""The output directory of a fine-tuning: whether it is new, started or finished, and what it achieved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.directory import has_checkpoint
from ..checkpoint.training_state import entry, finite_number, mapping, whole_number
from ..errors import BadRecordError, CorruptCheckpointError
from ..utils.file_io import parse_json

RECIPE = Path("data", "config.yaml")
LOCK_NAME = ".lock"
"""File that excludes a second training; one of a killed training may stay, and is not in force."""


@dataclass(frozen=True)
class Outcome:
    """Results of a training; None where it has not evaluated yet.

    Attributes:
        metric: "segm/AP".
        before, best: of the initial model, and of the best one.
        iteration: of the best model, counted from 0.
    """

    metric: str | None = None
    before: float | None = None
    best: float | None = None
    iteration: int | None = None


class OutputDirectory:
    """Directory of one training. It need not exist.

    Args:
        path: directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(Path(path).expanduser()))

    @property
    def recipe(self) -> Path:
        """Return the config that the training was started with."""
        return self.path / RECIPE

    @property
    def finished(self) -> bool:
        """Return whether the training came to its end, which may have been an early stop."""
        return (self.path / "model_final.safetensors").is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Return whether there is something to resume from, also where `last_checkpoint` was lost."""
        return has_checkpoint(self.path)

    def check_new(self) -> None:
        """Check that a training can start here; one that ended before its first checkpoint is replaced.

        Raises:
            ValueError: other files, or another training.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--output {self.path} is a file, not a directory")
        names = {entry.name for entry in self.path.iterdir()} - {LOCK_NAME} if self.path.is_dir() else set()
        if not names:
            return
        if self.has_checkpoint or self.finished:
            state = "a finished training" if self.finished else "a training that was interrupted"
            more = "`--resume --iterations N` makes it longer" if self.finished else "`--resume` continues it"
            raise ValueError(f"{self.path} holds {state}: {more}. For a new training choose another --output.")
        if not self.recipe.is_file() and names != {"data"}:
            raise ValueError(
                f"{self.path} is not empty, and its files are not those of a training: choose another --output."
            )

    def check_resumable(self) -> None:
        """Check that there is a training to resume.

        Raises:
            ValueError: there is none; the message says what to do.
        """
        if not self.recipe.is_file():
            started = (self.path / "config.yaml").is_file()
            remedy = (
                f"it was not started by --data: use --resume with --config-file {self.path / 'config.yaml'}"
                if started
                else "start it without --resume, or name its directory with --output"
            )
            raise ValueError(f"there is no training to resume in {self.path}: {remedy}.")

    def outcome(self) -> Outcome:
        """Read the results of the training so far."""
        before, best = (_read(self.path / name) for name in ("baseline.json", "model_best.json"))
        note = best or before
        return Outcome(note.get("metric"), before.get("value"), best.get("value"), best.get("iteration"))


def _read(file: Path) -> dict[str, Any]:
    return read_note(file) if file.is_file() else {}


def read_note(file: Path) -> dict[str, Any]:
    """Read `model_best.json` or `baseline.json`: metric, value, dataset, and of the first iteration.

    Raises:
        CorruptCheckpointError: the file is damaged.
    """
    try:
        note = parse_json(str(file))
        value = finite_number(entry(mapping(note, "the content"), "value", "the content"), "'value'")
        if not isinstance(note.get("metric", ""), str):
            raise CorruptCheckpointError("'metric' is no text")
        whole_number(note.get("iteration", 0), "'iteration'", -1)
    except (BadRecordError, CorruptCheckpointError) as error:
        raise CorruptCheckpointError(
            f"{file} is damaged ({error}). Delete it: without it the training goes on, and what it compares with is "
            "measured again."
        ) from error
    return {**note, "value": value}
