"""The journal of a long clip: one file of masks for each window, one of the tracks' state, and logs, on the disk.

Masks leave the memory window by window, and a run that was killed goes on after the last finished window. Every file
is whole or absent, but for the logs, which grow at their end and of which the state says how much counts. The state is
written last, so that a window counts only when its masks are there. What is written for a window does not grow with
the number of windows.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.file_io import read_json, write_bytes, write_json

_LOG = "log_"  # before a log's name in the state: its rows and columns


class JournalMismatch(ValueError):
    """The directory holds the journal of another run."""


class Journal:
    """Files of one run in `directory`.

    Args:
        directory: is made; a journal that is there already is continued.
        run: what the results depend on (JSON: video, model, settings); kept as an attribute.
    Raises:
        JournalMismatch: the journal there is that of another run; the message says what differs.
    """

    def __init__(self, directory: Path, run: Mapping[str, Any]) -> None:
        self.directory = directory
        head = directory / "run.json"
        self.run: dict[str, Any] = json.loads(json.dumps(run))  # as it comes back from a file: tuples are lists
        if head.is_file():
            before = read_json(head, "journal of a video")
            differing = sorted(key for key in {*self.run, *before} if self.run.get(key) != before.get(key))
            if differing:
                raise JournalMismatch(
                    f"{directory} holds the results of another run (other {', '.join(differing)}); delete it to start "
                    "anew, or choose another directory"
                )
        else:
            # Results whose run is not known, of a directory that was deleted in part, are nobody's.
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
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}); delete {self.directory} to start anew") from error

    def append(
        self,
        window: Mapping[str, Any],
        state: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Finish a window.

        Args:
            window: its masks and what else is read by `windows()`.
            state: what the next window needs.
            rows: for the name of a log (R, C) numbers, which `log()` gives with those of the windows before.
        """
        write_json(self._window(self.done), window)
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
        """The video has ended; `facts` are kept for `facts()`."""
        write_json(self.directory / "finished.json", facts)

    def facts(self) -> dict[str, Any] | None:
        """What `finish` was given; None while windows are missing."""
        path = self.directory / "finished.json"
        return read_json(path, "journal of a video") if path.is_file() else None

    def windows(self) -> Iterator[dict[str, Any]]:
        """The finished windows in order, one in memory at a time."""
        for index in range(self.done):
            yield read_json(self._window(index), "journal of a video")

    def log(self, name: str) -> np.ndarray:
        """All rows of a log, float64 (R, C); (0, 0) where there is none yet."""
        count, columns = self.state.get(_LOG + name, (0, 0))
        if not count:
            return np.zeros((0, 0))
        path = self._log(name)
        values = np.fromfile(path, dtype="<f8", count=int(count * columns)) if path.is_file() else np.zeros(0)
        if len(values) != count * columns:
            raise ValueError(f"{path} is missing or truncated; delete {self.directory} to start anew")
        return values.reshape(count, columns)

    def _extend(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Write rows after those that count, over what a killed run may have left there; gives the new size."""
        before = int(self.state.get(_LOG + name, (0, 0))[0])
        path = self._log(name)
        with path.open("r+b" if before else "wb") as file:
            file.truncate(before * rows.shape[1] * 8)
            file.seek(0, os.SEEK_END)
            file.write(rows.astype("<f8").tobytes())
            file.flush()
            os.fsync(file.fileno())
        return np.array([before + len(rows), rows.shape[1]])

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _window(self, index: int) -> Path:
        return self.directory / f"window_{index:06d}.json"
