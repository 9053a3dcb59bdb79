"""Text of the commands: tables, counts, errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..results import Result
from ..structures.task import Task
from ..utils.file_io import short_path

_SHOWN_FILES = 8


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as aligned text; empty columns are omitted."""
    columns = [i for i in range(len(head)) if any(row[i] for row in rows)]
    widths = {i: max(len(head[i]), *(len(row[i]) for row in rows)) for i in columns}
    ruler = ["-" * widths.get(i, 0) for i in range(len(head))]
    lines = ["  ".join(row[i].ljust(widths[i]) for i in columns) for row in (head, ruler, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def describe_counts(result: Result) -> str:
    """Format counts per class: "31 nucleus" or "12: 5 person, 4 car, 3 tree"."""
    return format_counts(result.counts(), semantic=result.tasks == (Task.SEMANTIC,))


def format_counts(counts: dict[str, int], semantic: bool = False) -> str:
    """Format counts of classes, as `Result.counts` returns them."""
    if not counts:
        return "0"
    if semantic:
        return f"{len(counts)} classes: " + ", ".join(list(counts)[:4]) + (", ..." if len(counts) > 4 else "")
    listed = [f"{n} {name}" for name, n in counts.items()]
    text = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return text if len(listed) == 1 else f"{sum(counts.values())}: {text}"


def describe_scores(result: Result) -> str:
    """Format the three best scores."""
    if result.panoptic is not None:
        scores = sorted((s.score for s in result.panoptic.segments if s.score is not None), reverse=True)
    elif result.instances is not None:
        scores = sorted((float(s) for s in result.instances.scores), reverse=True)
    else:
        return "-"
    return " ".join(f"{s:.2f}" for s in scores[:3]) or "-"


def plural(count: int, noun: str) -> str:
    """Format a number and its noun: "1 image", "2 images"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def print_error(text: str) -> None:
    """Print a line on stderr that begins with "error:"."""
    print(f"error: {text}", file=sys.stderr)


def print_files(written: Sequence[Path], target: Path) -> None:
    """List the files that were written, the last ones of many."""
    for path in written[-_SHOWN_FILES:]:
        print(f"  {short_path(path)}")
    if len(written) > _SHOWN_FILES:
        print(f"  ... and {len(written) - _SHOWN_FILES} more in {target}")
