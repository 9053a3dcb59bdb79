"""Fonts for labels: one that has the characters of a text, or another spelling of the text, never empty boxes."""

from __future__ import annotations

import contextlib
import logging
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

_EMPTY = frozenset({"Last Resort High-Efficiency", "Last Resort"})  # fonts of boxes for every character
# Families that programs and systems bring for scripts that DejaVu Sans lacks, before all others.
_PREFERRED = ("Noto Sans", "Source Han Sans", "WenQuanYi", "Microsoft YaHei", "PingFang", "Arial Unicode", "Segoe UI")


def readable(text: str) -> str:
    """Return the text as labels show it: as it is if one font has all its characters, else transliterated.

    A character that no font has is written without its accents, or as its Unicode number (`U+4E2D`), so that two
    names never look the same. The first of such texts is a warning in the log.
    """
    return _choose(text)[0]


def load_font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load the font that shows `readable(text)`: DejaVu Sans (from matplotlib) if it can, else one of the system.

    Args:
        size: in pixels.
        text: what is to be drawn.
    """
    return _open(_choose(text)[1], size)


@lru_cache(maxsize=64)
def _open(path: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)
    except OSError:
        return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _choose(text: str) -> tuple[str, str | None]:
    """Return what is drawn, and the file of the font (None: Pillow's own)."""
    usual = _usual_font()
    known = _characters(usual)
    needed = frozenset(ord(c) for c in text if not c.isspace() and not _is_invisible(c))
    if needed <= known:
        return _without_missing(text, known), usual
    # Letters of Arabic and others are joined by Pillow only with libraqm; unjoined ones can still be told apart.
    for path in _other_fonts():
        if needed <= _characters(path):
            return _without_missing(text, _characters(path)), path
    _warn()
    return "".join(_spelled(c, known) for c in text), usual


@lru_cache(maxsize=1)
def _warn() -> None:
    logger.warning(
        "No font on this machine has all characters of the class names, so labels show others in their place; install "
        "one such as Noto Sans CJK to see the names. Files of results have the names as they are."
    )


def _spelled(character: str, known: frozenset[int]) -> str:
    """Return a character if the font has it, else its base letter, else its number."""
    if _is_invisible(character):
        return ""
    if character.isspace() or ord(character) in known:
        return character
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    if plain and all(ord(c) in known for c in plain):
        return plain
    return f"U+{ord(character):04X} "


def _without_missing(text: str, known: frozenset[int]) -> str:
    """Return the text without invisible characters that the font lacks, which would be boxes."""
    return "".join(c for c in text if ord(c) in known or not _is_invisible(c))


def _is_invisible(character: str) -> bool:
    """Return whether a character only changes its neighbors, as the joiners and selectors of emoji."""
    return unicodedata.category(character) == "Cf" or 0xFE00 <= ord(character) <= 0xFE0F


def _usual_font() -> str | None:
    with contextlib.suppress(ImportError):
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return str(path)
    return None


@lru_cache(maxsize=1)
def _other_fonts() -> tuple[str, ...]:
    """Return the font files of this machine that matplotlib knows, usual families first."""
    try:
        from matplotlib.font_manager import fontManager
    except ImportError:
        return ()
    # The glyphs of colored fonts are empty where they are drawn in one color.
    fonts = [f for f in fontManager.ttflist if f.name not in _EMPTY and "Color" not in f.name and f.style == "normal"]
    fonts.sort(key=lambda f: (not f.name.startswith(_PREFERRED), str(f.weight) not in ("400", "normal", "regular")))
    return tuple(dict.fromkeys(f.fname for f in fonts))


@lru_cache(maxsize=256)
def _characters(path: str | None) -> frozenset[int]:
    """Return the code points of a font; those of Pillow's own are taken to be ASCII."""
    if path is None:
        return frozenset(range(0x21, 0x7F))
    try:
        from matplotlib.ft2font import FT2Font

        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()  # bitmaps have one size only
    except (OSError, RuntimeError, ValueError):  # a damaged font of the system
        return frozenset()
