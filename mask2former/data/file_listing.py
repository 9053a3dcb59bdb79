"""List the files below a directory, each once: links that lead in a circle end, hidden files are left out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MOST_FILES = 2_000_000
_DEEPEST = 100  # directories below the root
_IGNORED = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a hidden file (also "._..." of macOS), of Thumbs.db or the like."""
    return name.startswith(".") or name.lower() in _IGNORED


def list_files(root: str | os.PathLike[str]) -> list[Path]:
    """List the files below a directory in the order of their names; hidden ones are left out, see `is_hidden`.

    Links to directories are followed, but no directory is listed twice: not by a link to one that contains the link,
    and not by a link to one that is below the root anyway. Broken links are left out.

    Raises:
        ValueError: more than two million files, or directories more than 100 deep, which is hardly one dataset.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    waiting = [Path(root)]
    while waiting or links:
        if not waiting:  # links last, in the order of their names: the directory itself has the first right
            links.sort(key=lambda path: path.parts)
            waiting.append(links.pop(0))
        directory = waiting.pop()
        status = directory.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if len(directory.parts) - len(Path(root).parts) > _DEEPEST:
            raise ValueError(f"{directory}: is more than {_DEEPEST} directories below {root}; pass a directory of data")
        with contextlib.suppress(PermissionError), os.scandir(directory) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = directory / entry.name
                with contextlib.suppress(OSError):  # a broken link: as if it were not there
                    if entry.is_dir():
                        (links if entry.is_symlink() else waiting).append(path)
                    elif entry.is_file():
                        found.append(path)
        if len(found) > _MOST_FILES:
            raise ValueError(f"{root}: holds more than {_MOST_FILES} files; pass the directory of one dataset")
    return sorted(found, key=lambda path: path.parts)
