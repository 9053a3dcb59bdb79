"""A logger whose service may be slow or unreachable: it works in a thread of its own, and the training never waits."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ...utils.file_io import read_json_object, write_json

logger = logging.getLogger(__name__)

RUNS_FILE = "loggers.json"
"""In OUTPUT_DIR: {name of the logger: id of its run}, so that a resumed training continues the run."""

_WAITING = 1000  # rows and images that may wait for the service; later ones are dropped
_FAILURES = 5  # in a row, after which a logger gives up
_LAST_SECONDS = 60.0  # for the service to take the rest, at the end of the training


@dataclass(frozen=True)
class Run:
    """A run to start: its name, an id if it is to be continued, the config (flat, and as YAML) and a directory."""

    name: str
    run_id: str | None
    settings: Mapping[str, str | int | float | bool]
    yaml: str
    directory: Path


class Backend(ABC):
    """What a service does; all calls come from one thread, and any exception counts as a failure of the service."""

    @abstractmethod
    def start(self, run: Run) -> str:
        """Start or continue a run, log the config, and return the id of the run."""

    @abstractmethod
    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log numbers of an iteration; they are finite."""

    @abstractmethod
    def image(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        """Log an image, (H, W, 3) uint8 RGB."""

    @abstractmethod
    def finish(self, final: Mapping[str, float], completed: bool) -> None:
        """Log the last results, and end the run as completed or as stopped early."""

    @property
    def where(self) -> str:
        """Return where the run can be seen, for the log; known after `start`."""
        return ""


class BackgroundLogger(EventWriter):
    """Hands scalars and images of the event storage to a `Backend` in a daemon thread.

    A service that fails is reported once; after `_FAILURES` failures in a row the logger gives up, and the training
    goes on. The run starts with `begin`, or the first `write`.

    Args:
        name: of the logger in LOGGERS.
        backend: its class, which is created and called in the thread.
        cfg: config of the training.
        directory: its OUTPUT_DIR.
        last_seconds: how long `close` waits for the service.
    """

    def __init__(
        self,
        name: str,
        backend: Callable[[], Backend],
        cfg: CfgNode,
        directory: Path,
        last_seconds: float = _LAST_SECONDS,
    ) -> None:
        self.completed = False
        self._name, self._new_backend, self._cfg, self._directory = name, backend, cfg, directory
        self._last_seconds = last_seconds
        self._queue: queue.Queue[Callable[[Backend], object] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._last_write, self._last_image = -1, -1
        self._dropped = self._failures = 0
        self._reported = self._gave_up = False
        self._final: dict[str, float] = {}

    # ---- called by the training
    def begin(self, resumed: bool) -> None:
        """Start the thread, and in it the run: the one of OUTPUT_DIR if the training was resumed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(resumed,), name=self._name, daemon=True)
            self._thread.start()

    def write(self) -> None:
        """Queue the numbers and images that are new in the event storage; never waits."""
        self.begin(resumed=False)
        storage = get_event_storage()
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for key, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self._last_write and math.isfinite(value):
                rows[iteration][key] = float(value)
                if "/" in key:  # of an evaluation: task/metric
                    self._final[key] = float(value)
        for iteration, values in sorted(rows.items()):
            self._put(lambda backend, i=iteration, v=values: backend.scalars(i, v))  # type: ignore[misc]
        self._last_write = max([self._last_write, *rows])
        images = [entry for entry in storage._vis_data if entry[2] > self._last_image]
        for name, tensor, iteration in images:
            pixels = np.ascontiguousarray(torch.as_tensor(tensor).permute(1, 2, 0).numpy())
            self._put(lambda backend, i=iteration, n=name, p=pixels: backend.image(i, n, p))  # type: ignore[misc]
        self._last_image = max([self._last_image, *(entry[2] for entry in images)])

    def close(self) -> None:
        """End the run; waits for the service at most `last_seconds`, and says so when that is not enough."""
        if self._thread is None:
            return
        final, completed = dict(self._final), self.completed
        deadline = time.monotonic() + self._last_seconds
        try:
            self._queue.put(lambda backend: backend.finish(final, completed), timeout=self._last_seconds)
            self._queue.put(None, timeout=max(0.1, deadline - time.monotonic()))
        except queue.Full:
            self._dropped += 1
        self._thread.join(max(0.1, deadline - time.monotonic()))
        if self._thread.is_alive():
            text = "LOGGERS %s: the service did not take everything within %.0f s after the training; going on."
            logger.warning(text, self._name, self._last_seconds)
        elif self._dropped and not self._gave_up:
            logger.warning("LOGGERS %s: the service was too slow, %d entries are missing.", self._name, self._dropped)
        self._thread = None

    def _put(self, call: Callable[[Backend], object]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._dropped += 1

    # ---- in the thread
    def _work(self, resumed: bool) -> None:
        backend: Backend | None = None
        try:
            backend = self._new_backend()
            self._start(backend, resumed)
        except Exception as error:
            self._give_up("could not be started", error)
        while (call := self._queue.get()) is not None:
            if self._gave_up or backend is None:
                continue  # empties the queue, so that `close` does not wait
            try:
                call(backend)
                self._failures = 0
            except Exception as error:
                self._fail(error)

    def _start(self, backend: Backend, resumed: bool) -> None:
        path = self._directory / RUNS_FILE
        runs = _read_runs(path)
        run_id = runs.get(self._name) if resumed else None
        name = self._directory.resolve().name or "training"
        run = Run(name, run_id, dict(_flat(self._cfg)), self._cfg.dump(), self._directory)
        started = backend.start(run)
        with _RUNS_LOCK:
            write_json(path, {**_read_runs(path), self._name: started}, indent=1)
        logger.info("Logging to %s%s.", self._name, f": {backend.where}" if backend.where else "")

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= _FAILURES:
            self._give_up(f"failed {self._failures} times in a row", error)
        elif not self._reported:
            self._reported = True
            text = "LOGGERS %s: an entry could not be logged, the training goes on: %s: %s"
            logger.warning(text, self._name, type(error).__name__, error)

    def _give_up(self, what: str, error: Exception) -> None:
        self._gave_up = True
        text = "LOGGERS %s: it %s and is switched off; the training goes on: %s: %s"
        logger.warning(text, self._name, what, type(error).__name__, error)


_RUNS_LOCK = threading.Lock()  # several loggers write into one file


def _read_runs(path: Path) -> dict[str, str]:
    """Return the ids of runs by logger; nothing of a file that cannot be read, which only starts new runs."""
    try:
        content = read_json_object(str(path)) if path.is_file() else {}
    except (ValueError, OSError) as error:
        logger.warning("%s: new runs are started: %s", path, error)
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str | int | float | bool]]:
    """Return (key, value) of every leaf of a config, lists as text."""
    rows: list[tuple[str, str | int | float | bool]] = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, (str, int, float, bool)) else str(value)))
    return rows
