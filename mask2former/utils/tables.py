"""Tables for the log."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tabulate import tabulate


def side_by_side(headers: Sequence[str], rows: Sequence[Sequence[object]], width: int = 8) -> str:
    """Format a table of many short rows in several column groups, so that 133 classes fit on a screen.

    Args:
        headers: names of the columns of one group.
        rows: one sequence per row, as long as `headers`.
        width: largest number of columns on the screen.
    """
    groups = max(1, min(width // len(headers), len(rows)))
    height = -(-len(rows) // groups)
    blank = [""] * len(headers)
    columns = [list(rows[i * height : (i + 1) * height]) for i in range(groups)]
    lines = [list(itertools.chain(*line)) for line in itertools.zip_longest(*columns, fillvalue=blank)]
    return tabulate(lines, headers=list(headers) * groups, tablefmt="pipe", floatfmt=".3f", numalign="left")


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names with " (2)", " (3)" ... appended to repeated ones, because results are keyed by name."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result
