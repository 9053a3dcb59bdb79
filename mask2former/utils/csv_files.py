"""CSV files that spreadsheets open safely: cells of text are never formulas.

Class names and file names come from other people. A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@`
(https://owasp.org/www-community/attacks/CSV_Injection), so that such text gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .atomic_file import atomic_write

# The wide forms are what Japanese and Chinese keyboards give; spreadsheets read them as the narrow ones.
_FORMULA_STARTS = frozenset("=+-@|%\uff1d\uff0b\uff0d\uff20")


def safe_cell(value: Any) -> str | int | float:
    """Return a value as a cell: text that a spreadsheet could run as a formula gets an apostrophe in front.

    Numbers stay numbers, also negative ones; those of NumPy and torch become Python's. None, NaN and infinity become
    empty cells, and bools 0 or 1. Spaces and control characters before the first visible character do not hide a
    formula; NUL is removed, and every line break becomes "\\n".
    """
    if value is None:
        return ""
    if isinstance(value, bool | Integral):
        return int(value)
    if not isinstance(value, str) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return safe_cell(value.item())
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else ""
    # The csv module does not quote a lone carriage return, after which readers begin a new row.
    text = str(value).replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    visible = next((c for c in text if c.isprintable() and not c.isspace()), "")
    # A tab or line break in front is removed by some programs, and then the text is read once more.
    return f"'{text}" if visible in _FORMULA_STARTS or text[:1] in ("\t", "\n") else text


def write_csv(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table atomically as UTF-8 CSV with one header line and "\\n" line ends; create its directory.

    Args:
        path: path of the file.
        header: names of the columns.
        rows: cells, as many as the header has, in one pass (a generator is fine); see `safe_cell`.

    Raises:
        ValueError: a row has more or fewer cells than the header; no file is written.
    """
    path = Path(path).expanduser()
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([safe_cell(name) for name in header])
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise ValueError(f"{path}: row {number} has {len(row)} cells, but the header has {len(header)}")
            writer.writerow([safe_cell(value) for value in row])
        text.flush()
        text.detach()
    return path
