"""Many files converted in parallel: what was kept, made, mended, and what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from ...errors import BadRecordError
from ...utils.parallel import map_parallel

Task = TypeVar("Task")


class Stage(Enum):
    """What became of one file."""

    WRITTEN = "written"
    KEPT = "already there"
    REPAIRED = "repaired"  # was there, but cut short or of another size


@dataclass(frozen=True)
class Outcome:
    """Result of one task: stage, what goes into the json file, and what the user should know."""

    stage: Stage
    entry: Any = None
    note: str | None = None


@dataclass
class Report:
    """What one step of a script did."""

    title: str
    target: str
    counts: dict[Stage, int] = field(default_factory=lambda: dict.fromkeys(Stage, 0))
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome | str) -> None:
        """Count a result; text is the reason of a failure."""
        if isinstance(outcome, str):
            self.failures.append(outcome)
            return
        self.counts[outcome.stage] += 1
        if outcome.note:
            self.notes.append(outcome.note)

    def summary(self) -> str:
        """One line, and a second one where there are notes."""
        parts = [f"{number} {stage.value}" for stage, number in self.counts.items()]
        parts.append(f"{len(self.failures)} failed")
        text = f"{self.title}: {', '.join(parts)}, {time.monotonic() - self.started:.1f} s -> {self.target}"
        if self.notes:
            text += f"\n  {len(self.notes)} notes, the first: {self.notes[0]}"
        return text


def work(
    convert: Callable[[Task], Outcome], tasks: Sequence[Task], workers: int, title: str
) -> Iterator[tuple[Task, Outcome | str]]:
    """Run `convert` on all tasks, in their order, with a progress bar.

    Args:
        convert: function of a module (processes find it by name); a `BadRecordError` or `FileNotFoundError` that
            it raises fails this task only, anything else ends the work.
        tasks: what it is called with.
        workers: processes; 1 works in this one.
        title: for the progress bar.

    Yields:
        Each task with its outcome, or with the reason why it failed.
    """
    results = map_parallel(partial(_guarded, convert), tasks, title, workers)
    for outcome, task in zip(results, tasks):  # results first, so that the progress bar sees their end
        yield task, outcome


def convert_all(
    convert: Callable[[Task], Outcome], tasks: Sequence[Task], workers: int, title: str, target: object
) -> Report:
    """`work` on all tasks where each makes a file of its own; `target` is the folder, for the summary."""
    report = Report(title, str(target))
    for _, outcome in work(convert, tasks, workers, title):
        report.add(outcome)
    return report


def _guarded(convert: Callable[[Task], Outcome], task: Task) -> Outcome | str:
    try:
        return convert(task)
    except (BadRecordError, FileNotFoundError) as error:
        return str(error)
