"""Writing of pages that a tool makes, for the tools that make them."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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
