"""The commands of the guides are valid command lines."""

from __future__ import annotations

import importlib
import shlex

import pytest

from mask2former.cli import COMMANDS
from mask2former.cli.parser import CommandParser

from ..docs.markdown import blocks, pages


def commands() -> list[tuple[str, str]]:
    """Return (page, command line) of the shell examples of all guides."""
    found = []
    for page in pages():
        for block in blocks(page):
            if block.info[:1] == ("bash",):
                lines = block.code.replace("\\\n", " ").splitlines()
                found += [(page.name, line.strip()) for line in lines if line.strip().startswith("mask2former ")]
    return found


def test_there_are_commands() -> None:
    assert {"predict", "track", "eval", "models", "convert"} <= {line.split()[1] for _, line in commands()}


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_valid(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0] in ("--version", "--help", "COMMAND"):
        return
    assert words[0] in COMMANDS, page
    parser = CommandParser(f"mask2former {words[0]}", "")
    importlib.import_module(COMMANDS[words[0]].module).add_arguments(parser)
    parser.parse_args(words[1:])
