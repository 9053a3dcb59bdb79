"""How this Python was started: as the command line of the package, or as a program that imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import PurePath

_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # options of Python whose value is the next argument


def is_command_line(package: str, arguments: Sequence[str] | None = None) -> bool:
    """Return whether Python runs `python -m <package>`, or a console script of that name.

    Other modules of the package (`python -m mask2former.ops`) and processes that a command starts are not it.

    Args:
        package: full name of the package.
        arguments: what Python was called with, its own options too; default: `sys.orig_argv` without the executable.
    """
    rest = iter(sys.orig_argv[1:] if arguments is None else arguments)
    for argument in rest:
        if argument == "-m":
            return next(rest, "") in (package, f"{package}.__main__")
        if argument == "-c" or argument == "-":
            return False
        if argument in _WITH_VALUE:
            next(rest, None)
        elif not argument.startswith("-"):
            script = PurePath(argument.replace("\\", "/"))
            return script.stem == package.rpartition(".")[2] and script.suffix.lower() in ("", ".exe")
    return False
