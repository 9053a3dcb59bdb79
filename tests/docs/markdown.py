"""Reading the guides: their code blocks, links and names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
_TICKS = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced code block: `info` is what stands behind the fence, `line` the number of its first line of code."""

    page: Path
    info: tuple[str, ...]
    code: str
    line: int

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """All guides of the repository."""
    found = [*ROOT.glob("*.md"), *(p for d in ("docs", "datasets", "demo") for p in (ROOT / d).rglob("*.md"))]
    return sorted(p for p in found if p.is_file())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> Iterator[Block]:
    text = text_of(page)
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(page, tuple(found["info"].split()), found["code"], line)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", text_of(page))


def links(page: Path) -> list[str]:
    return [a or b for a, b in _LINK.findall(prose(page))]


def ticked(page: Path) -> list[str]:
    """What stands between single backticks."""
    return _TICKS.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
