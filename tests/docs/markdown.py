"""Read the guides: their code blocks, links, names and anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

DIRECTORIES = ("configs", "datasets", "demo", "docs", "examples", "mask2former", "tools")

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")  # also of a link around an image
_TICKS = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced code block: `info` is the words after the fence, `line` the number of its first line of code."""

    page: Path
    info: tuple[str, ...]
    code: str
    line: int

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return the paths of all guides of the repository."""
    paths = [*ROOT.glob("*.md"), *(path for name in DIRECTORIES for path in (ROOT / name).rglob("*.md"))]
    return sorted(path for path in paths if path.is_file())


def text_of(page: Path) -> str:
    """Return the text of a guide."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced code blocks of a guide, in order."""
    text = text_of(page)
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(page, tuple(match["info"].split()), match["code"], line)


def prose(page: Path) -> str:
    """Return the text of a guide without its code blocks."""
    return _FENCE.sub("", text_of(page))


def links(page: Path) -> list[str]:
    """Return the targets of links and images."""
    return _LINK.findall(prose(page))


def ticked(page: Path) -> list[str]:
    """Return the text between single backticks."""
    return _TICKS.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
