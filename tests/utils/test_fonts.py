from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from mask2former.utils import fonts
from mask2former.utils.fonts import load_font, readable
from mask2former.visualization import Region, add_caption, add_legend, draw_regions


@pytest.fixture(autouse=True)
def no_fonts_of_the_system(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "_other_fonts", lambda: ())
    fonts._choose.cache_clear()
    fonts._warn.cache_clear()
    yield
    fonts._choose.cache_clear()


def write_font(path: Path, text: str) -> str:
    """Write a font whose glyphs of the characters of `text` are squares of different sizes."""
    names = [".notdef", *(f"g{i}" for i in range(len(text)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"g{i}" for i, c in enumerate(text)})
    glyphs = {}
    for i, name in enumerate(names):
        pen = TTGlyphPen(None)
        edge = 150 * (i + 1)
        pen.moveTo((0, 0))
        for point in ((0, edge), (edge, edge), (edge, 0)):
            pen.lineTo(point)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def test_a_font_of_the_system_is_used_where_it_has_the_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (write_font(tmp_path / "a.ttf", "细"), write_font(tmp_path / "b.ttf", "细胞核"))
    monkeypatch.setattr(fonts, "_other_fonts", lambda: files)
    assert readable("细胞核") == "细胞核" and load_font(20, "细胞核").path == files[1]  # type: ignore[union-attr]
    assert Path(load_font(20, "nucleus").path).name == "DejaVuSans.ttf"  # type: ignore[union-attr,arg-type]


def test_names_without_a_font_differ_and_give_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shown = [readable(name) for name in ("细胞核", "红血球", "🦠", "ＡＢＣ", "Zelle ß", "клетка", "two words")]
    assert shown[0] == "U+7EC6 U+80DE U+6838 " and len(set(shown)) == len(shown)
    assert readable("a\u2060b细\ufe0f") == "abU+7EC6 "  # characters without a glyph of their own
    assert shown[3:] == ["ABC", "Zelle ß", "клетка", "two words"]
    assert len(caplog.records) == 1 and "install" in caplog.text


def test_everything_that_is_drawn_can_be_told_apart() -> None:
    image = np.full((200, 400, 3), 90, np.uint8)
    mask = np.ones((160, 360), bool)
    drawings = []
    for name in ("细胞核", "红血球"):
        drawn = draw_regions(image, [Region(mask, 20, 20, (200, 0, 0), name)], labels=True)
        drawings.append([drawn, add_legend(drawn, [(name, (1, 2, 3))]), add_caption(drawn, name)])
    for first, second in zip(*drawings, strict=True):
        assert first.tobytes() != second.tobytes()
