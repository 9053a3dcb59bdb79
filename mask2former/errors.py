"""Errors that users can cause: each names the file, record or key, and says what to do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the remedy."""


class UnsafeCheckpointError(CheckpointError):
    """The file would run code or needs an object type that no checkpoint needs."""


class CorruptCheckpointError(CheckpointError):
    """The file is truncated or is not a checkpoint."""


class ConfigError(ValueError):
    """A setting is invalid; the message names the key and the remedy."""


logger = logging.getLogger(__name__)

_SHOWN = 5


class BadRecordError(ValueError):
    """One record of a dataset cannot be used.

    The message names the file, the record in it and the reason. With `DATALOADER.SKIP_BAD_RECORDS` the data loaders
    catch exactly this class, count it and continue.

    Args:
        file: the file that is invalid or contains the invalid record.
        reason: what is wrong and, where it helps, how to fix it.
        record: the record in the file, for example "annotation 17".
    """

    def __init__(self, file: str | Path, reason: str, record: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.record = record
        super().__init__(f"{self.file}: {record}: {reason}" if record else f"{self.file}: {reason}")

    def __reduce__(self) -> tuple:
        # A loader worker sends its exceptions to the rank, pickled.
        return type(self), (self.file, self.reason, self.record)


def report_bad_records(file: str, problems: Sequence[BadRecordError], count: int, things: str = "images") -> None:
    """Log which records of an annotation file are invalid, and how many images (or videos) are left out for them."""
    if not problems:
        return
    shown = "\n".join(f"  {error.record or error.file}: {error.reason}" for error in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    text = "%s: %d bad records; %d %s with such records are left out:\n%s%s"
    logger.warning(text, file, len(problems), count, things, shown, more)


def first_few(names: Sequence[str], count: int = _SHOWN) -> str:
    """Return the first names of a list, joined for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


class InUseError(ValueError):
    """Another program writes the same output; the message names its host and process."""
