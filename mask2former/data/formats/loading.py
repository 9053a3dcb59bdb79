"""Finding the format of training data, and reading it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import BadRecordError
from ...utils.file_io import short_path
from ...utils.hints import did_you_mean
from . import coco, label_maps
from .coco_data import CocoData, Context
from .files import Tree

# In the order in which they are tried: a format with more of its own signs comes first.
_READERS: tuple[ModuleType, ...] = (coco, label_maps)
FORMATS: dict[str, ModuleType] = {reader.NAME: reader for reader in _READERS}


class FormatError(ValueError):
    """The format of training data is unknown; the message lists what was looked for and the nearest guess."""


def detect_format(path: str | os.PathLike[str]) -> str:
    """Return the name of the format of a file or directory, a key of `FORMATS`.

    Raises:
        FileNotFoundError: the path does not exist.
        FormatError: no format fits.
    """
    return _find(_tree(path), "auto")[0].NAME


def load_data(
    path: str | os.PathLike[str] | Any,
    format: str = "auto",
    *,
    problems: list[BadRecordError] | None = None,
    negatives: bool = True,
    **options: Any,
) -> dict[str, CocoData]:
    """Read training data of any format of `FORMATS` as COCO instances.

    Args:
        path: directory, or annotation file.
        format: name of the format; "auto" finds it.
        problems: list that takes bad records, which are then left out. None raises the first one.
        negatives: keep images without objects; they teach what is background.
        options: of the format: `image_root` (COCO: directory that its file names start from).

    Returns:
        Split ("train", "val", "test", or "all" where the data has no splits) -> its data. All splits have the same
        categories. `notes` of each say what was decided and left out.

    Raises:
        FileNotFoundError: the path does not exist.
        FormatError: no format fits.
        BadRecordError: a file or record is malformed; names file and record.
        ValueError: unknown format, or data without one usable image.
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(
            f"format {format!r} is unknown; use auto, {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}"
        )
    tree = _tree(path)
    reader, found = _find(tree, format)
    return reader.load(found, Context(tree, problems, negatives, options))


class _OneFile(Tree):
    """The directory of one annotation file, of which only this annotation file counts."""

    def __init__(self, file: Path) -> None:
        super().__init__(file.parent)
        self.file = self.root / file.name

    def with_suffix(self, *suffixes: str) -> list[Path]:
        return [self.file] if self.file.suffix.lower() in suffixes else []


def _tree(path: str | os.PathLike[str]) -> Tree:
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"training data {short_path(place)} does not exist")
    if place.is_dir():
        return Tree(place)
    if place.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        raise FormatError(f"{place} is an archive; unpack it and pass the directory")
    return _OneFile(place)


def _find(tree: Tree, format: str) -> tuple[ModuleType, Any]:
    readers = _READERS if format == "auto" else (FORMATS[format],)
    for reader in readers:
        found = reader.find(tree)
        if found:
            return reader, found
    place = tree.file if isinstance(tree, _OneFile) else tree.root
    looked = "\n".join(f"  {reader.LOOKED_FOR}" for reader in readers)
    what = "the format of the training data is unknown" if format == "auto" else f"is not in the format {format!r}"
    raise FormatError(f"{place}: {what}: {_guess(tree)}.\nLooked for:\n{looked}")


def _guess(tree: Tree) -> str:
    images = len(tree.images)
    others: dict[str, int] = {}
    for path in tree.files:
        if path not in set(tree.images[:0]) and path.suffix and path not in tree.images[:0]:
            others[path.suffix.lower()] = others.get(path.suffix.lower(), 0) + 1
    if not tree.files:
        return "the directory is empty"
    if not images:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items(), key=lambda x: -x[1])[:5])
        return f"found no image, only {listed or 'files without a suffix'}"
    return f"found {images} images but no annotations"


def names_of(data: Sequence[CocoData]) -> list[str]:
    """Return the class names of the first split; all splits have the same."""
    return data[0].names if data else []
