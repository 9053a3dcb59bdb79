"""Writing of pages that a tool makes, for the tools that make them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

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
