"""How every command ends with an error: one message and an exit status, a traceback only on demand.

`run_guarded` is for programs of one process. `engine.launch`, which has ranks, uses `describe`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

from .user_errors import original_text, user_message

ISSUES = "https://github.com/mask2former/mask2former/issues"
_VARIABLE = "MASK2FORMER_DEBUG"
_HINT = "(--debug shows where it arose)"
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_NO_READER = 141  # 128 + SIGPIPE


def add_debug(parser: argparse.ArgumentParser, default: object = None) -> None:
    """Add --debug, for which the variable MASK2FORMER_DEBUG=1 is another name, also to its subcommands.

    Args:
        parser: left as it is if it has the argument.
        default: default of the argument; None: what the variable says.
    """
    for action in parser._actions:
        for child in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            add_debug(child, argparse.SUPPRESS)  # a default would overwrite what was given before the subcommand
    if "--debug" not in parser._option_string_actions:
        parser.add_argument(
            "--debug",
            action="store_true",
            default=debug_requested() if default is None else default,
            help=f"show tracebacks of errors (also with {_VARIABLE}=1)",
        )


def debug_requested() -> bool:
    """Return whether the environment asks for tracebacks."""
    return os.environ.get(_VARIABLE, "") not in ("", "0")


def run_program(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], object],
    argv: Sequence[str] | None = None,
    *,
    mistake: int = 2,
) -> int:
    """Parse the arguments of a script, run it, and return its exit status; see `run_guarded`."""
    add_debug(parser)
    args = parser.parse_args(argv)
    return run_guarded(lambda: work(args), debug=args.debug, mistake=mistake)


def run_guarded(work: Callable[[], object], *, debug: bool = False, mistake: int = 2) -> int:
    """Run the work of a command and return its exit status; an error becomes a message on stderr.

    Args:
        work: returns the exit status; anything but an integer is 0. SystemExit passes through.
        debug: print the traceback too.
        mistake: exit status of an error that users can cause; 1 stands for a fault of the program.
    """
    write_any_character()
    try:
        status = work()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except SystemExit:
        raise
    except KeyboardInterrupt:
        _tell("interrupted")
        return _INTERRUPTED
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return _NO_READER
        debug = debug or debug_requested()
        if debug:
            traceback.print_exception(error)
        _tell(describe(error, debug=debug))
        return mistake if user_message(error) is not None else 1


def _tell(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr
        sys.stderr.write(f"error: {text}\n")


def describe(error: BaseException, *, debug: bool = False, log_file: str | None = None, separator: str = " ") -> str:
    """Return the message about an error: what a user can cause, or that it is a fault of the program.

    Args:
        error: any but SystemExit and KeyboardInterrupt.
        debug: the traceback is shown, so that the message need not say where it is.
        log_file: file that holds the traceback; None: a temporary file is written if users cannot cause the error.
        separator: stands between message and hint.
    """
    message = user_message(error)
    if message is not None:
        return message if debug else f"{message}{separator}{_HINT}"
    text = f"this is a fault of the program, not of your input: {original_text(error)}."
    place = "" if debug else f" The traceback is in {log_file or _save_traceback(error)}."
    return f"{text}{place} Please report it with the traceback: {ISSUES}"


def _save_traceback(error: BaseException) -> str:
    text = f"{' '.join(sys.argv)}\n{''.join(traceback.format_exception(error))}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="mask2former-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
        return file.name
    except OSError:
        return "no file, as none can be written; run it again with --debug"


def write_any_character() -> None:
    """Let stdout and stderr replace what they cannot show, as file names that are not UTF-8, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _reader_is_gone() -> bool:
    """Return whether nobody reads the output any more, as in `mask2former models | head`; it is discarded then."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in gone:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _is_broken(stream: TextIO) -> bool:
    try:
        stream.flush()
        if not hasattr(select, "poll"):  # Windows
            return True
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (BrokenPipeError, ValueError):  # ValueError: closed
        return True
    except OSError:  # no file, as in tests
        return False
