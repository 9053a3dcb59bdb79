"""Image files of a command line: paths, directories and patterns, and what to say about those that do not exist."""

from __future__ import annotations

import fnmatch
import functools
import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.file_listing import is_hidden, list_files
from ..data.image_io import IMAGE_SUFFIXES, image_names
from ..errors import first_few
from ..result_files import UniqueNames
from ..utils.downloads import is_download
from ..utils.file_io import is_special
from ..utils.hints import did_you_mean

logger = logging.getLogger(__name__)


def collect(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files of paths, directories and patterns, without duplicates; and messages for inputs without any.

    Hidden files of directories and patterns are left out. What else of a directory is left out is logged.
    """
    files: dict[Path, Path] = {}  # by a path without links to directories, which can lead in a circle
    real = functools.cache(lambda directory: Path(os.path.realpath(directory)))
    problems = []
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            matches = _in_directory(path)
            if not matches:
                problems.append(f"{item}: no images in this directory (supported: {', '.join(sorted(IMAGE_SUFFIXES))})")
        elif is_download(item):
            matches = []
            problems.append(f"{item}: is a URL; download it, and give the file")
        elif path.is_file():
            matches = [path]
        elif is_special(path):
            matches = []
            problems.append(f"{item}: is a pipe or device, not a file")
        elif glob.has_magic(item):
            matches = [file for file in _of_pattern(path) if file.is_file() and not is_hidden(file.name)]
            if not matches:
                problems.append(f"{item}: this pattern matches no file (searched from {Path.cwd()})")
        else:
            matches = []
            problems.append(f"{item}: does not exist.{similar(path)}")
        for file in matches:
            files.setdefault(real(file.parent) / file.name, file)
    return list(files.values()), problems


def _in_directory(path: Path) -> list[Path]:
    """Return the images of a directory, and log which of its files and directories are not used."""
    entries = [entry for entry in sorted(path.iterdir()) if not is_hidden(entry.name)]
    names = image_names(entry.name for entry in entries if entry.is_file())
    known = set(names)
    others = [entry.name for entry in entries if not entry.is_dir() and entry.name not in known]
    if others and names:
        text = "%s: %d files are left out, because their names do not end like those of images: %s"
        logger.warning(text, path, len(others), first_few(others))
    below = [entry.name for entry in entries if entry.is_dir()]
    if below:
        text = "%s: its directories are not searched for images: %s; the pattern '%s/**/*.png' does so"
        logger.warning(text, path, first_few(below), path)
    return [path / name for name in names]


def _of_pattern(pattern: Path) -> list[Path]:
    """Return the files of a pattern; `**` follows links to directories as `list_files` does, and comes to an end."""
    if "**" not in pattern.parts:
        return sorted(Path(name) for name in glob.glob(str(pattern)))
    fixed = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    base, rest = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    return [file for file in list_files(base) if _fits(file.parts[fixed:], rest)] if base.is_dir() else []


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return any(_fits(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def unique_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each file: its file name; where several have the same, with as much of the path as differs."""
    counts = Counter(file.name for file in files)
    same = [Path(os.path.abspath(file)) for file in files if counts[file.name] > 1]
    base = os.path.commonpath([file.parent for file in same]) if same else ""
    return [
        Path(os.path.abspath(file)).relative_to(base).as_posix() if counts[file.name] > 1 else file.name
        for file in files
    ]


def unique_stems(files: Sequence[Path]) -> list[str]:
    """Return the stem of the output files of each file: its own, with a number where an earlier one has the same."""
    names = UniqueNames()
    return [names.unique(file.stem) for file in files]


def similar(path: Path) -> str:
    """Return a hint to a file of a similar name, or that the directory does not exist either."""
    if not path.parent.is_dir():
        return f" Its directory {path.parent} does not exist either."
    return did_you_mean(path.name, (p.name for p in path.parent.iterdir()))
