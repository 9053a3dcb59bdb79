"""Journal of a long clip on disk: one file of masks per window, one of the tracks' state, and logs.

Masks are released from memory window by window, and a run that was killed resumes after the last finished window. Files
are written atomically, except for the logs, which are appended to and whose valid length is in the state. The state is
written last, so that a window counts only after its masks are written. The amount written per window does not grow with
the number of windows.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.file_io import read_json, write_bytes, write_json
from ..utils.locks import Lock

_LOG = "log_"  # prefix of a log's name in the state, where its rows and columns are stored


class JournalMismatch(ValueError):
    """The directory holds the journal of a different run."""


class Journal:
    """Files of one run in `directory`.

    Args:
        directory: created if needed, and locked against other processes while this object is there; an existing
            journal in it is resumed.
        run: what the results depend on (JSON content: video, model, settings); kept as an attribute.

    Raises:
        JournalMismatch: the existing journal is of a different run; the message lists what differs.
        InUseError: another process writes the journal; the message names it and its host.
        ValueError: a file of the existing journal is damaged.
    """

    def __init__(self, directory: Path, run: Mapping[str, Any]) -> None:
        self.directory = directory
        self._lock = Lock(directory / ".lock", f"The journal {directory}")
        try:
            self._open(run)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, run: Mapping[str, Any]) -> None:
        directory = self.directory
        head = directory / "run.json"
        self.run: dict[str, Any] = json.loads(json.dumps(run))  # as read back from a file: tuples become lists
        if head.is_file():
            stored = self.read(head.name)
            if not isinstance(stored, dict):
                raise self.damage(head.name, "it does not contain a JSON object")
            differing = sorted(key for key in {*self.run, *stored} if self.run.get(key) != stored.get(key))
            if differing:
                raise JournalMismatch(
                    f"{directory} holds the results of a run with different {', '.join(differing)}; delete it to start "
                    "over, or choose another directory"
                )
        else:
            # Results without run.json (a partly deleted directory) cannot be attributed to a run.
            for name in ("finished.json", "state.npz"):
                (directory / name).unlink(missing_ok=True)
            write_json(head, self.run)
        self.state = self._read_state()
        self.done = int(self.state["done"]) if self.state else 0

    def _read_state(self) -> dict[str, np.ndarray]:
        path = self.directory / "state.npz"
        if not path.is_file():
            return {}
        try:
            with np.load(path, allow_pickle=False) as file:
                state = {name: file[name] for name in file.files}
        except Exception as error:  # of zipfile, zlib and NumPy: nearly everything, MemoryError too
            raise self.damage(path.name, str(error) or type(error).__name__) from error
        shapes = {"done": (), **{name: (2,) for name in state if name.startswith(_LOG)}}
        for name, shape in shapes.items():
            value = state.get(name)
            if (
                not isinstance(value, np.ndarray)
                or value.dtype.kind != "i"
                or value.shape != shape
                or (value < 0).any()
            ):
                raise self.damage(path.name, f"{name} is missing or not a count")
        if not all(isinstance(value, np.ndarray) for value in state.values()):
            raise self.damage(path.name, "it does not contain arrays only")
        return state

    def damage(self, name: str, reason: str) -> ValueError:
        """Return the error for a damaged file of the journal."""
        return ValueError(f"{self.directory / name} is damaged ({reason}); delete {self.directory} to start over")

    def read(self, name: str) -> Any:
        """Return the content of a JSON file of the journal.

        Raises:
            ValueError: it is missing or not JSON.
        """
        try:
            return read_json(self.directory / name, "journal of a video")
        except FileNotFoundError as error:
            raise self.damage(name, "it is missing") from error
        except ValueError as error:
            raise self.damage(name, str(error)) from error

    def append(
        self,
        window: Mapping[str, Any],
        state: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write a finished window.

        Args:
            window: its masks and everything else that `windows()` returns (JSON content).
            state: arrays that the next window needs.
            rows: name of a log -> rows (R, C) to append to it; `log()` returns them all.
        """
        write_json(self.directory / self.window(self.done), window)
        sizes = {name: value for name, value in self.state.items() if name.startswith(_LOG)}
        for name, new in (rows or {}).items():
            if len(new):
                sizes[_LOG + name] = self._extend(name, new)
        self.done += 1
        self.state = {**state, **sizes, "done": np.array(self.done)}
        buffer = io.BytesIO()
        np.savez(buffer, **self.state)  # type: ignore[arg-type]
        write_bytes(self.directory / "state.npz", buffer.getvalue())

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the video as finished; store `facts` for `facts()`."""
        write_json(self.directory / "finished.json", facts)

    def facts(self) -> dict[str, Any] | None:
        """Return the facts passed to `finish`, or None if the run has not finished."""
        return self.read("finished.json") if (self.directory / "finished.json").is_file() else None

    def windows(self) -> Iterator[dict[str, Any]]:
        """Yield the finished windows in order, one in memory at a time."""
        for index in range(self.done):
            yield self.read(self.window(index))

    def log(self, name: str) -> np.ndarray:
        """Return all rows of a log, float64 (R, C); (0, 0) if it is empty. ValueError if the file is truncated."""
        count, columns = (int(value) for value in self.state.get(_LOG + name, (0, 0)))
        if not count:
            return np.zeros((0, 0))
        path = self._log(name)
        if not path.is_file() or path.stat().st_size < count * columns * 8:
            raise self.damage(path.name, "it is missing or truncated")
        return np.fromfile(path, dtype="<f8", count=count * columns).reshape(count, columns)

    def _extend(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Append rows to the valid ones, dropping what a killed run may have left; return the new size."""
        count = int(self.state.get(_LOG + name, (0, 0))[0])
        path = self._log(name)
        with path.open("r+b" if count else "wb") as file:
            file.truncate(count * rows.shape[1] * 8)
            file.seek(0, os.SEEK_END)
            file.write(rows.astype("<f8").tobytes())
            file.flush()
            os.fsync(file.fileno())
        return np.array([count + len(rows), rows.shape[1]])

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    @staticmethod
    def window(index: int) -> str:
        """Return the file name of a window."""
        return f"window_{index:06d}.json"
