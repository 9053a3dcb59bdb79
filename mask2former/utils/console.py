"""The console of a command: what only the log file gets, and progress bars that log lines do not garble.

A training logs more than people read: the complete config, the model, the environment. `FILE_ONLY` and `file_only` keep
such messages off the console where `setup_console` was called; handlers that others installed show everything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

from tqdm import tqdm

PACKAGE = __name__.removesuffix(".utils.console")
"""Name of the logger above all of this package; a copy inside another project has a longer one."""

FILE_ONLY = {"file_only": True}
"""For `extra` of a log call: the message goes to log.txt, not to the console."""

_CHATTER = ("detectron2.data.common",)  # "Serializing 6 elements to byte tensors"

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextlib.contextmanager
def file_only(active: bool = True) -> Iterator[None]:
    """Keep messages below the level of a warning off the console inside the context; they still reach log.txt."""
    token = _quiet.set(_quiet.get() or active)
    try:
        yield
    finally:
        _quiet.reset(token)


class ConsoleHandler(logging.StreamHandler):
    """Writes to the present `sys.stdout`, above progress bars, and leaves out what is for the log file only."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # `stream` is a property here

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def filter(self, record: logging.LogRecord) -> Any:
        """Return whether to show the record: warnings always, debugging never, others unless they are for the file."""
        hidden = _quiet.get() or getattr(record, "file_only", False) or record.name in _CHATTER
        shown = record.levelno >= (logging.WARNING if hidden else logging.INFO)
        return shown and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; progress bars are cleared before and drawn again after it."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def setup_console(names: Sequence[str] = (PACKAGE, "detectron2", "fvcore")) -> None:
    """Give each of these loggers that writes to stdout one `ConsoleHandler` instead, in the same format.

    May be called again after something else has added handlers. Loggers without a handler of stdout stay so.
    """
    for name in names:
        logger = logging.getLogger(name)
        plain = [h for h in logger.handlers if type(h) is logging.StreamHandler and h.stream is sys.stdout]
        for former in plain:
            logger.removeHandler(former)
        if plain:
            for former in [h for h in logger.handlers if isinstance(h, ConsoleHandler)]:
                logger.removeHandler(former)
            handler = ConsoleHandler()
            handler.setLevel(plain[-1].level)
            handler.setFormatter(plain[-1].formatter)
            logger.addHandler(handler)


def bars_enabled() -> bool:
    """Return whether to draw progress bars: stderr is a terminal, and our lines do not garble them.

    False on all ranks but the first, which have no console, and in programs that set up logging themselves.
    """
    ours = any(isinstance(handler, ConsoleHandler) for handler in logging.getLogger(PACKAGE).handlers)
    return ours and sys.stderr is not None and sys.stderr.isatty()


def progress_bar(total: int, text: str, *, start: int = 0, unit: str = "it") -> tqdm:
    """Open a bar with ETA on stderr, for `total` units of which `start` are done; it draws nothing where bars are off.

    Close it in the end: it disappears, as the log has the results.
    """
    return tqdm(
        total=total,
        initial=start,
        desc=text,
        unit=unit,
        file=sys.stderr,
        disable=not bars_enabled(),
        # A terminal that does not know its width, as in some containers, would show nothing.
        dynamic_ncols=_columns() > 0,
        ncols=None if _columns() > 0 else 80,
        leave=False,
    )


def _columns() -> int:
    """Return the width of the terminal of stderr, 0 if it is unknown."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, ValueError, OSError):  # no stderr, or not a file
        return 0
