"""OUTPUT_DIR/metrics.json: one JSON object a line, each written once, also where a training was killed and resumed."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage

from ..utils.atomic_file import naming_file
from ..utils.file_io import write_bytes

logger = logging.getLogger(__name__)

_Row = dict[str, Any]


class MetricsFile(EventWriter):
    """Writes the scalars of the event storage, and the results of evaluations, to a file in detectron2's format.

    The rows of a training that was resumed are those of one that never stopped: rows after the checkpoint, which will
    be written again, are removed when it begins. The row of an evaluation follows that of its iteration. It is written
    last, after everything that the evaluation changes, so it also tells that the evaluation is complete.

    Args:
        path: the file; it is opened for each row, and a row on the disk when its writing returns.
        window: number of iterations between two rows; of a scalar with several values between, the median is written.
    """

    def __init__(self, path: Path, window: int) -> None:
        self._path, self._window = path, window
        self._written: dict[str, int] = {}  # scalar -> iteration in the storage
        self._regular: set[str] = set()  # scalars that come before the row of their iteration
        self._results_at = -1  # iteration before the first, if the file has results of its evaluation

    def begin(self, start: int, resumed: bool) -> None:
        """Keep the rows of iterations before `start`; a training that was not resumed begins a new file.

        The rows of an earlier training in the directory are moved to metrics.1.json (or the next free number). A
        truncated last line, which a kill leaves, is removed.
        """
        if not self._path.is_file() or not self._path.stat().st_size:
            return
        if not resumed:
            self._move_away()
            return
        count = len(self._path.read_bytes().splitlines())
        self._rewrite(lambda row: row if row["iteration"] < start else None)
        if removed := count - len(self._path.read_bytes().splitlines()):
            logger.info("%s: removed %d rows of what comes after %d iterations.", self._path, removed, start)
        rows = [_row(line) for line in self._path.read_bytes().splitlines()]
        if any(row and row["iteration"] == start - 1 and any("/" in key for key in row) for row in rows):
            self._results_at = start - 1

    def has_results(self, iteration: int) -> bool:
        """Return whether the evaluation after the iteration before the first one was complete before."""
        return iteration >= 0 and iteration == self._results_at

    def write(self) -> None:
        """Append a row for each iteration with scalars that are not written yet."""
        self._write(frozenset())

    def note_regular(self) -> None:
        """Remember the scalars that have a value of this iteration already; call this after each one."""
        storage = get_event_storage()
        self._regular.update(name for name, (_, iteration) in storage.latest().items() if iteration == storage.iter)

    def write_late(self) -> None:
        """Append what later hooks have added since the last row, at the end of a training.

        That are scalars which are not `note_regular`: of those a resumed training writes the next value.
        """
        self._write(self._regular)

    def _write(self, without: Collection[str]) -> None:
        rows: dict[int, _Row] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window).items():
            if iteration > self._written.get(name, -1) and name not in without:
                rows[iteration][name] = value
                self._written[name] = iteration
        self._append([{**rows[iteration], "iteration": iteration} for iteration in sorted(rows)])

    def write_results(self, iteration: int, results: Mapping[str, float]) -> None:
        """Append a row of the results of an evaluation, in place of those that an earlier one of it left.

        Args:
            iteration: the last one before the evaluation, counted from 0.
            results: scalars, which are in the event storage too.
        """
        latest = get_event_storage().latest()
        self._written.update({name: latest[name][1] for name in results if name in latest})
        if self.has_results(iteration):
            self._rewrite(lambda row: _without(row, results) if row["iteration"] == iteration else row)
        self._append([{**results, "iteration": iteration}])

    def _append(self, rows: list[_Row]) -> None:
        if not rows:
            return
        text = "".join(f"{json.dumps(row, sort_keys=True)}\n" for row in rows)
        with naming_file(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def _rewrite(self, change: Callable[[_Row], _Row | None]) -> None:
        """Change or remove (None) rows, atomically. Lines that are no rows stay, but for a truncated last one."""
        before = self._path.read_bytes()
        lines = before.splitlines()
        kept = []
        for number, line in enumerate(lines):
            row = _row(line)
            if row is None:
                kept += [line] if number < len(lines) - 1 else []
            elif (changed := change(row)) is not None:
                kept.append(line if changed == row else json.dumps(changed, sort_keys=True).encode())
        after = b"".join(line + b"\n" for line in kept)
        if after != before:
            write_bytes(self._path, after)

    def _move_away(self) -> None:
        number = 1
        while (target := self._path.with_name(f"{self._path.stem}.{number}{self._path.suffix}")).exists():
            number += 1
        os.replace(self._path, target)
        logger.info("%s of an earlier training is now %s.", self._path, target.name)


def _row(line: bytes) -> _Row | None:
    """Parse a line; None if it is not a row with an iteration."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("iteration")) is int else None


def _without(row: _Row, names: Mapping[str, Any]) -> _Row | None:
    """Return the row without scalars; None if none is left."""
    rest = {name: value for name, value in row.items() if name not in names}
    return rest if len(rest) > 1 else None
