"""The parser of a command, and the types of its arguments."""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..utils.failures import add_debug, debug_requested
from ..utils.hints import did_you_mean
from ..utils.text_files import expand_home


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line with the remedy, and whose description keeps its line breaks."""

    def __init__(self, prog: str, description: str = "", **options: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,  # a shortened option could change its meaning when another one is added
            **options,
        )
        add_debug(self, default=argparse.SUPPRESS)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the arguments; exit with status 2 after one line about the first that is unknown."""
        words = self._with_values(sys.argv[1:] if args is None else args)
        parsed, unknown = self.parse_known_args(words, namespace or argparse.Namespace(debug=debug_requested()))
        if unknown:
            option = unknown[0].partition("=")[0]
            hint = did_you_mean(option, _options(self)) if option.startswith("-") else ""
            self.error(f"unknown argument {option!r}.{hint}")
        for name, value in vars(parsed).items():
            setattr(parsed, name, _from_home(value))
        return parsed

    def _with_values(self, words: Sequence[str]) -> list[str]:
        """Return the words with the default of an option of fixed, optional values written out where none follows.

        `--amp a.png` becomes `--amp=auto a.png`; argparse would take the image for the value. `--amp fp32` stays, and
        is an error that names the values.
        """
        if all(action.option_strings for action in self._actions):
            return list(words)  # without positional arguments what follows is meant as a value, if perhaps a wrong one
        values = {
            name: (str(action.const), tuple(action.choices))
            for action in self._actions
            if action.nargs == "?" and action.choices is not None
            for name in action.option_strings
        }
        following = [*words[1:], ""]
        return [
            f"{word}={values[word][0]}" if word in values and not _is_value(after, values[word][1]) else word
            for word, after in zip(words, following, strict=False)  # of no words there is one that follows
        ]

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with status 2."""
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"error: {message}{end} See {self.prog} --help\n")


def _is_value(word: str, choices: Sequence[str]) -> bool:
    """Return whether a word is one of the choices or a slip for one, such as fp32, and no file or directory."""
    if word in choices or not re.fullmatch(r"[a-z]+\d*", word):
        return word in choices
    return (word[-1].isdigit() or bool(did_you_mean(word, choices))) and not Path(word).exists()


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            yield from itertools.chain.from_iterable(map(_options, action.choices.values()))


def _from_home(value: Any) -> Any:
    """Expand `~/` of paths, which a shell leaves in --output=~/out and inside quotes."""
    if isinstance(value, list):
        return [_from_home(entry) for entry in value]
    if isinstance(value, str) and value.startswith("~/"):
        return expand_home(value)
    return value


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(120, max(60, shutil.get_terminal_size().columns)))


def refuse_given(args: argparse.Namespace, names: Iterable[str], reason: str, *, auto: bool = False) -> None:
    """Raise ValueError for the first of these arguments that was given, because it would have no effect.

    Args:
        args: an argument counts as given unless it is missing, None, False, empty or "auto", which are defaults.
        names: as in `args`.
        reason: completes "--x has no effect ...".
        auto: whether "auto" counts as given, as it does for arguments that are None by default.
    """
    for name in names:
        value = getattr(args, name, None)
        if value is not None and value is not False and value not in ("", [], ()) and (auto or value != "auto"):
            raise ValueError(f"--{name.replace('_', '-')} has no effect {reason}")


# ------------------------------------------------------------------ types of arguments
def path(text: str) -> Path:
    """Convert to a path; a leading `~` is the home directory, also where no shell has expanded it."""
    return Path(expand_home(text))


def fraction(text: str) -> float:
    """Convert to a number between 0 and 1."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return value


def scale(text: str) -> float:
    """Convert to a size of overlays relative to the image."""
    value = float(text)
    if not 0.0 < value <= 16.0:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most 16, not {text}")
    return value


def length(text: str) -> float:
    """Convert to a finite number above 0."""
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def positive(text: str) -> int:
    """Convert to an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def not_negative(text: str) -> int:
    """Convert to an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return value
