"""Image files of a command line: paths, directories and patterns, and what to say about those that do not exist."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from ..data.image_io import IMAGE_SUFFIXES, image_names
from ..utils.hints import did_you_mean


def collect(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files of paths, directories and patterns, without duplicates; and messages for inputs without any."""
    files: dict[Path, None] = {}
    problems = []
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            matches = sorted(path / name for name in image_names(p.name for p in path.iterdir() if p.is_file()))
            if not matches:
                problems.append(f"{item}: no images in this directory (supported: {', '.join(sorted(IMAGE_SUFFIXES))})")
        elif path.is_file():
            matches = [path]
        elif glob.has_magic(item):
            matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
            if not matches:
                problems.append(f"{item}: this pattern matches no file (searched from {Path.cwd()})")
        else:
            matches = []
            problems.append(f"{item}: does not exist.{similar(path)}")
        files.update(dict.fromkeys(matches))
    return list(files), problems


def similar(path: Path) -> str:
    """Return a hint to a file of a similar name, or that the directory does not exist either."""
    if not path.parent.is_dir():
        return f" Its directory {path.parent} does not exist either."
    return did_you_mean(path.name, (p.name for p in path.parent.iterdir()))
