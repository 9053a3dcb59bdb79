"""The journal of a long clip: one file of masks for each window and one of the tracks' state, on the disk.

Masks leave the memory window by window, and a run that was killed goes on after the last finished window. Every file
is whole or absent; the state is written last, so that a window counts only when its masks are there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.files import read_json, write_bytes, write_json


class JournalMismatch(ValueError):
    """The folder holds the journal of another run."""


class Journal:
    """Files of one run in `folder`.

    Args:
        folder: is made; a journal that is there already is continued.
        run: what the results depend on (JSON: video, model, settings).
    Raises:
        JournalMismatch: the journal there is that of another run; the message says what differs.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        head = folder / "run.json"
        run = json.loads(json.dumps(run))  # as it comes back from a file: tuples are lists
        if head.is_file():
            before = read_json(head, "journal of a video")
            differing = sorted(key for key in {*run, *before} if run.get(key) != before.get(key))
            if differing:
                raise JournalMismatch(
                    f"{folder} holds the results of another run (other {', '.join(differing)}); delete it to start "
                    "anew, or choose another folder"
                )
        else:
            write_json(head, run)
        self.state = self._read_state()
        self.done = int(self.state["done"]) if self.state else 0

    def _read_state(self) -> dict[str, np.ndarray]:
        path = self.folder / "state.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def append(self, window: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
        """Finish a window: its masks, then what the next one needs."""
        write_json(self._window(self.done), window)
        self.done += 1
        self.state = {**state, "done": np.array(self.done)}
        buffer = io.BytesIO()
        np.savez(buffer, **self.state)  # type: ignore[arg-type]
        write_bytes(self.folder / "state.npz", buffer.getvalue())

    def finish(self, facts: Mapping[str, Any]) -> None:
        """The video has ended; `facts` are kept for `facts()`."""
        write_json(self.folder / "finished.json", facts)

    def facts(self) -> dict[str, Any] | None:
        """What `finish` was given; None while windows are missing."""
        path = self.folder / "finished.json"
        return read_json(path, "journal of a video") if path.is_file() else None

    def windows(self) -> Iterator[dict[str, Any]]:
        """The finished windows in order, one in memory at a time."""
        for index in range(self.done):
            yield read_json(self._window(index), "journal of a video")

    def _window(self, index: int) -> Path:
        return self.folder / f"window_{index:06d}.json"
