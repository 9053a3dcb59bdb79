"""What reaches the console, and log lines beside progress bars."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator

import pytest

from mask2former.utils.console import (
    FILE_ONLY,
    PACKAGE,
    ConsoleHandler,
    bars_enabled,
    file_only,
    progress_bar,
    setup_console,
)


class Terminal(io.StringIO):
    """What a terminal shows of stdout and stderr: `rows` interprets carriage returns, line feeds and cursor up."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        rows, row, column = [""], 0, 0
        text = self.getvalue().replace("\x1b[A", "\x00")
        for character in text:
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
                column = 0
                rows += [""] * (row + 1 - len(rows))
            elif character == "\x00":
                row -= 1
            else:
                line = rows[row].ljust(column)
                rows[row] = line[:column] + character + line[column + 1 :]
                column += 1
        return [line.rstrip() for line in rows]


@contextlib.contextmanager
def on_terminal() -> Iterator[Terminal]:
    """One terminal for both streams, and the logger "mask2former" as `setup_logger` leaves it.

    Not a fixture: pytest sets its own streams between the fixtures and the test.
    """
    shown = Terminal()
    logger = logging.getLogger("mask2former")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", shown)
        patch.setattr(sys, "stderr", shown)
        patch.setattr(logger, "handlers", [logging.StreamHandler(shown)])
        level = logger.level
        logger.setLevel(logging.DEBUG)
        yield shown
        logger.setLevel(level)


def test_only_the_file_gets_what_is_marked() -> None:
    with on_terminal() as terminal:
        file = io.StringIO()
        logger = logging.getLogger("mask2former.test")
        logging.getLogger("mask2former").addHandler(logging.StreamHandler(file))
        setup_console()
        logger.info("shown")
        logger.info("config", extra=FILE_ONLY)
        logger.debug("detail")
        with file_only():
            logger.info("table")
            logger.warning("warned")
            with file_only(False):
                logger.info("still inside")
        logger.info("after")
        assert terminal.getvalue().split() == ["shown", "warned", "after"]
        assert file.getvalue().splitlines() == ["shown", "config", "detail", "table", "warned", "still inside", "after"]


def test_setting_up_twice_shows_a_line_once() -> None:
    with on_terminal() as terminal:
        logger = logging.getLogger("mask2former")
        setup_console()
        setup_console()
        logger.addHandler(logging.StreamHandler(terminal))  # as a second `setup_logger` does
        setup_console()
        logger.info("once")
        assert terminal.getvalue() == "once\n"
        assert sum(isinstance(handler, ConsoleHandler) for handler in logger.handlers) == 1


def test_lines_and_bars_do_not_garble_each_other() -> None:
    with on_terminal() as terminal:
        setup_console()
        logger = logging.getLogger("mask2former")
        outer = progress_bar(3, "training", start=1)
        for number in range(2):
            logger.info("line %d of the training", number)
            with progress_bar(2, "evaluating") as inner:
                inner.refresh()
                logger.info("line %d of the evaluation", number)
                inner.update(2)
            outer.update()
            outer.refresh()
        text = terminal.getvalue()
        assert "training:" in text and "evaluating:" in text and "1/3" in text and "3/3" in text
        outer.close()
        rows = [row for row in terminal.rows() if row]
        assert rows == [f"line {number} of the {what}" for number in range(2) for what in ("training", "evaluation")]


def test_no_bar_without_a_terminal_or_our_console(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_terminal() as terminal:
        assert not bars_enabled()  # a program that set up logging itself
        setup_console()
        assert bars_enabled()
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert not bars_enabled()
        with progress_bar(2, "training") as bar:
            bar.update()
        monkeypatch.setattr(sys, "stderr", None)
        assert not bars_enabled()
        assert terminal.getvalue() == ""


def test_the_logger_has_the_name_of_the_package() -> None:
    assert PACKAGE == "mask2former"
