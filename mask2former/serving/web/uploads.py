"""The one directory whose files requests may name: uploads, examples and files of results. It is temporary."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import BusyError, InvalidOptionError

logger = logging.getLogger(__name__)

_EXAMPLES, _RESULTS = "examples", "results"  # directories that are never swept
_ABANDONED = 300.0  # seconds without another byte after which an upload will not be completed


class UploadDirectory:
    """A temporary directory, deleted by `close`.

    Args:
        max_bytes: of all files together, and of those that are arriving; uploads are refused beyond it.
        max_files: number of files; the same.
        max_age: seconds after which a file is deleted by `sweep`.
    """

    def __init__(self, max_bytes: int = 4 << 30, max_files: int = 10_000, max_age: float = 3600.0) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="mask2former_web_", ignore_cleanup_errors=True)
        self.root = Path(os.path.realpath(self._temporary.name))
        self.max_bytes, self.max_files, self.max_age = max_bytes, max_files, max_age
        self._arriving = 0  # bytes of the uploads that are being received
        self._lock = threading.Lock()

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
        target = self.root / _EXAMPLES / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
        return target

    def new_directory(self) -> Path:
        """Make an empty directory for the files of a result, which stays until its owner deletes it."""
        parent = self.root / _RESULTS
        parent.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))

    def reserve(self, size: int) -> None:
        """Reserve room for an upload before it arrives; `release` has to follow when it has, or will not.

        Args:
            size: bytes of the upload.

        Raises:
            BusyError: too many bytes are arriving (a quarter of `max_bytes`), or there is no room for them.
        """
        with self._lock:
            if self._arriving + size > self.max_bytes // 4:
                raise BusyError("too many files are being uploaded; try again later", 10.0)
            self._arriving += size
            arriving = self._arriving
        sizes = [_size(file) for file in self.root.rglob("*")]  # what arrives just now counts twice
        if sum(sizes) + arriving > self.max_bytes or len(sizes) >= self.max_files:
            self.release(size)
            raise BusyError("the disk space for uploads is used up; try again later", 60.0)

    def release(self, size: int) -> None:
        """Give reserved room back."""
        with self._lock:
            self._arriving -= size

    def sweep(self) -> int:
        """Delete files older than `max_age`, abandoned uploads and empty directories; return how many files."""
        now, count = time.time(), 0
        for file in sorted(self.root.rglob("*"), reverse=True):  # files before their directories
            top = file.relative_to(self.root).parts[0]
            if top in (_EXAMPLES, _RESULTS):
                continue
            try:
                status = file.lstat()
                # Complete uploads lie in directories of their own.
                partial = file.name == top and stat.S_ISREG(status.st_mode)
                if status.st_mtime > now - min(self.max_age, _ABANDONED if partial else self.max_age):
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
