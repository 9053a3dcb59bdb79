"""Writing of pages that a tool makes, for the tools that make them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_WIDTH = 120


def write_page(page: Path, text: str, tool: str, check: bool) -> int:
    """Write a page, and say whether it was written; return 0.

    Args:
        tool: file name of the tool below tools/, for the message.
        check: write nothing, and return 1 if the page is another one.
    """
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        print(f"{page.name} is up to date")
        return 0
    if check:
        print(f"{page.name} is out of date; run python tools/{tool}", file=sys.stderr)
        return 1
    temporary = page.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, page)
    print(f"{page.name} written")
    return 0


def checked_report(file: Path, keys: Sequence[str], schema: int, tool: str) -> dict[str, Any]:
    """Read a JSON report.

    Args:
        file: the report.
        keys: what it must have.
        schema: the version of reports that is known.
        tool: the command that writes such reports.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no report, or one of another version.
    """
    try:
        report: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    missing = [key for key in keys if not isinstance(report, dict) or key not in report]
    if missing:
        raise ValueError(f"{file} has no {missing[0]!r}; is it made by {tool}?")
    if report.get("schema") != schema:
        raise ValueError(f"{file} has schema {report.get('schema')}, not {schema}: measure again with {tool}")
    return dict(report)


def wrapped(text: str, indent: str = "") -> str:
    """Break a paragraph at spaces outside code, as far as lines allow."""
    lines = [""]
    for word in re.findall(r"(?:`[^`]*`|[^\s`])+", text):
        if lines[-1].strip() and len(lines[-1]) + 1 + len(word) > _WIDTH:
            lines.append(indent + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, whose first column is text and whose others are numbers."""
    rule = ["---", *("---:" for _ in head[1:])]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in (head, rule, *rows))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
