"""The checkpoints of an output directory: which is the newest, and how many iterations they have finished."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError
from ..utils.atomic_file import remove_abandoned
from .reading import read_checkpoint

TAG = "last_checkpoint"
"""File that contains the name of the newest checkpoint."""

_PERIODIC = re.compile(r"model_(\d{7,})\.pth")
_LONGEST_NAME = 255
# What a training writes by `atomic_write` into its directory.
_WRITTEN = re.compile(
    rf".+\.(pth|safetensors)|{TAG}|(model_best|baseline|classes|loggers|metrics)\.json|config\.yaml", re.DOTALL
)


def read_tag(directory: Path) -> tuple[Path | None, str]:
    """Return the checkpoint that `last_checkpoint` names, or None and why there is none.

    Only a file of the directory itself is taken: the tag is data, and must not make a resume read elsewhere.
    """
    tag = directory / TAG
    if not os.path.lexists(tag):
        return None, f"{tag} is missing"
    try:
        if not tag.is_file():
            return None, f"{tag} is not a file"
        with tag.open("rb") as stream:
            name = stream.read(_LONGEST_NAME + 2).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return None, f"{tag} cannot be read ({error})"
    if not name:
        return None, f"{tag} is empty"
    if name in (".", "..") or len(name) > _LONGEST_NAME or re.search(r"[/\\\x00-\x1f]", name):
        return None, f"{tag} does not contain the name of a file in its directory: {name[:80]!a}"
    file = directory / name
    if not file.is_file():
        return None, f"{tag} names {name}, which is {'not a file' if os.path.lexists(file) else 'missing'}"
    return file, ""


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the checkpoints of a directory, last written first."""
    found: list[tuple[int, str, Path]] = []
    for file in directory.glob("*.pth") if directory.is_dir() else ():
        try:
            if file.is_file():
                found.append((file.stat().st_mtime_ns, file.name, file))
        except OSError:  # removed in the meantime
            continue
    return [file for _, _, file in sorted(found, reverse=True)]


def has_checkpoint(directory: str | os.PathLike[str]) -> bool:
    """Return whether a training has left a checkpoint, or at least a `last_checkpoint`, in a directory."""
    path = Path(directory)
    return os.path.lexists(path / TAG) or bool(checkpoint_files(path))


def iteration_in_name(file: Path) -> int | None:
    """Return 4 of model_0000004.pth, None for other names."""
    match = _PERIODIC.fullmatch(file.name)
    return int(match[1]) if match else None


def finished_iterations(directory: str | os.PathLike[str]) -> int | None:
    """Return the iterations that the tagged checkpoint has finished; None where that cannot be told."""
    file, _ = read_tag(Path(directory))
    if file is None:
        return None
    last = iteration_in_name(file)
    if last is None:
        last = iteration_of(file)
    return None if last is None else last + 1


def iteration_of(file: Path) -> int | None:
    """Return the number of the last finished iteration, from the content of a checkpoint; None if it has none."""
    try:
        value = read_checkpoint(file).get("iteration")
    except (CheckpointError, OSError):
        return None
    return value if type(value) is int else None


def remove_unfinished(directory: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that a killed training left; returns them. Files being written stay."""
    return remove_abandoned(directory, _WRITTEN)
