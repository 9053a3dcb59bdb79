"""Errors about checkpoint files: all are ValueErrors, which a launcher shows without a traceback."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used; the message names the file and the remedy."""


class UnsafeCheckpointError(CheckpointError):
    """The file asks for code to be run or for an object type that no checkpoint needs."""


class CorruptCheckpointError(CheckpointError):
    """The file is cut short or is not a checkpoint at all."""
