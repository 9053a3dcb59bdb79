"""The errors that users cause: each names file, record or key, and says what to do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used; the message names the file and the remedy."""


class UnsafeCheckpointError(CheckpointError):
    """The file asks for code to be run or for an object type that no checkpoint needs."""


class CorruptCheckpointError(CheckpointError):
    """The file is truncated or is not a checkpoint at all."""


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key and the remedy."""


logger = logging.getLogger(__name__)

_SHOWN = 5


class BadRecordError(ValueError):
    """One record of a dataset cannot be used.

    The message names the file, the record inside it and the reason. With ``DATALOADER.SKIP_BAD_RECORDS`` the
    data loaders catch exactly this class, count it and go on.

    Args:
        file: file that is broken or that holds the broken record.
        reason: what is wrong, and where it helps how to mend it.
        record: which record of the file, for example "annotation 17".
    """

    def __init__(self, file: str | Path, reason: str, record: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.record = record
        super().__init__(f"{self.file}: {record}: {reason}" if record else f"{self.file}: {reason}")

    def __reduce__(self) -> tuple:
        # Exceptions cross process borders when a loader worker raises them.
        return type(self), (self.file, self.reason, self.record)


def report_bad_records(file: str, problems: Sequence[BadRecordError], count: int, things: str = "images") -> None:
    """Say in the log which records of an annotation file are left out, and how many images (or videos) with them."""
    if not problems:
        return
    shown = "\n".join(f"  {error.record or error.file}: {error.reason}" for error in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    text = "%s: %d bad records; %d %s with such records are left out:\n%s%s"
    logger.warning(text, file, len(problems), count, things, shown, more)


def first_few(names: Sequence[str], count: int = _SHOWN) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
