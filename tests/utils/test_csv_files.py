"""Cells that spreadsheets must not run, numbers, and complete files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mask2former.utils.csv_files import safe_cell, write_csv


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "\t=1", "\r=1", "\n=1", "\0=1", "\u200b=1", "\ufeff=1", "\uff1d1"]
)
def test_formulas_become_text(text: str) -> None:
    assert str(safe_cell(text)).startswith("'")


@pytest.mark.parametrize("text", ["nucleus", "a=b", "a-b", "", "'quoted'", "5", "Zellkern \u00e4", "a,b", 'a"b'])
def test_other_text_stays(text: str) -> None:
    assert safe_cell(text) == text


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (-1, -1),
        (-1.5, -1.5),
        (True, 1),
        (None, ""),
        (float("nan"), ""),
        (float("inf"), ""),
        (np.int64(-3), -3),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), ""),
        (np.bool_(True), 1),
        (np.array(2), 2),
        (torch.tensor(0.25), 0.25),
    ],
)
def test_numbers(value: Any, cell: Any) -> None:
    result = safe_cell(value)
    assert result == cell and type(result) is type(cell)


@given(st.lists(st.tuples(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)), max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, float]]) -> None:
    """The csv module reads back what was written, and no cell of text is a formula."""
    path = write_csv(tmp_path_factory.mktemp("csv") / "a.csv", ["name", "count", "score"], iter(rows))
    header, *cells = read(path)
    assert header == ["name", "count", "score"]
    for (name, count, score), row in zip(rows, cells, strict=True):
        assert row[0].lstrip()[:1] not in ("=", "+", "-", "@")
        text = name.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
        assert row[0] in (text, "'" + text)
        assert (int(row[1]), float(row[2])) == (count, score)


def test_a_header_is_escaped_too_and_undecodable_names_are_written(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "new" / "a.csv", ["=cmd", "file"], [["a\nb", "x\udcff.png"]])
    assert read(path) == [["'=cmd", "file"], ["a\nb", "x\\udcff.png"]]


def test_a_carriage_return_starts_no_row(tmp_path: Path) -> None:
    assert read(write_csv(tmp_path / "a.csv", ["a", "b"], [["x\r=1+1", 2]]))[1:] == [["x\n=1+1", "2"]]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["a"], [[1]])
    with pytest.raises(ValueError, match=r"a\.csv: row 2 has 2 cells, but the header has 1"):
        write_csv(path, ["a"], [[1], [2, 3]])
    assert read(path) == [["a"], ["1"]] and [p.name for p in tmp_path.iterdir()] == ["a.csv"]
