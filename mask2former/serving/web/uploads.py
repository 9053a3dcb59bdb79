"""The one directory whose files requests may name: uploads, examples and files of results. It is temporary."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ..errors import InvalidOptionError

logger = logging.getLogger(__name__)

_KEPT = "examples"  # directory that is never swept


class UploadDirectory:
    """A temporary directory, deleted by `close`.

    Args:
        max_bytes: of all files together; uploads are refused beyond it.
        max_age: seconds after which a file is deleted by `sweep`.
    """

    def __init__(self, max_bytes: int = 4 << 30, max_age: float = 3600.0) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="mask2former_web_", ignore_cleanup_errors=True)
        self.root = Path(os.path.realpath(self._temporary.name))
        self.max_bytes, self.max_age = max_bytes, max_age

    def contains(self, path: Any) -> bool:
        """Return whether this is the absolute path of a regular file below the directory, symbolic links resolved."""
        if not isinstance(path, str) or "\0" in path or not os.path.isabs(path):
            return False
        try:
            real = Path(os.path.realpath(path, strict=True))
            return real.is_relative_to(self.root) and real.is_file()
        except OSError:
            return False

    def resolve(self, path: str) -> Path:
        """Return the path of an uploaded file.

        Raises:
            InvalidOptionError: it is not below the directory, or was deleted.
        """
        if not self.contains(path):
            raise InvalidOptionError("this file is not, or no longer, on the server; upload it again")
        return Path(os.path.realpath(path))

    def add_example(self, file: Path) -> Path:
        """Copy a file into the directory, where it stays until `close`, and return the copy."""
        target = self.root / _KEPT / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
        return target

    def new_directory(self) -> Path:
        """Make an empty directory for the files of a result."""
        return Path(tempfile.mkdtemp(prefix="result_", dir=self.root))

    def full(self) -> bool:
        """Return whether the files reach `max_bytes`."""
        return sum(_size(file) for file in self.root.rglob("*")) >= self.max_bytes

    def sweep(self) -> int:
        """Delete the files that are older than `max_age` seconds, and empty directories; return how many files."""
        before, count = time.time() - self.max_age, 0
        for file in sorted(self.root.rglob("*"), reverse=True):  # files before their directories
            if file.relative_to(self.root).parts[0] == _KEPT:
                continue
            try:
                if file.lstat().st_mtime > before:
                    continue
                if file.is_dir() and not file.is_symlink():
                    file.rmdir()  # fails if it is not empty
                else:
                    file.unlink()
                    count += 1
            except OSError:
                continue
        return count

    def close(self) -> None:
        """Delete the directory; further calls do nothing."""
        self._temporary.cleanup()


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:  # it was deleted in the meantime
        return 0
