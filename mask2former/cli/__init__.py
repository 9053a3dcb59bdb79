"""The command line: `mask2former COMMAND ...`, the same as `python -m mask2former COMMAND ...`.

Each command is a module of this package with `HELP` (one line), `DESCRIPTION` (with examples),
`add_arguments(parser)` and `run(args)`, which returns the exit status: 0, or 1 when some inputs failed. What a user
can cause is one message on stderr that begins with "error:", and status 2.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from ..utils.failures import run_guarded
from ..utils.hints import did_you_mean
from .parser import CommandParser
from .status import version_report

PROGRAM = "mask2former"


@dataclass(frozen=True)
class Command:
    """A command, described without importing its module."""

    name: str  # of the command and of its module
    help: str
    needs_torch: bool = True

    @property
    def module(self) -> str:
        """Return the full name of the module."""
        return f"{__name__}.{self.name}"

    def load(self) -> ModuleType:
        """Import the module; before it the components of the models, if the command needs them.

        Raises:
            ImportError: PyTorch or detectron2 is missing; the message gives the remedy.
        """
        if self.needs_torch:
            from .. import api  # noqa: F401
        return importlib.import_module(self.module)


_ALL = (
    Command("setup", "install PyTorch and detectron2 where they are missing, and compile the op", needs_torch=False),
    Command("predict", "segment images: overlays, a table of objects, COCO JSON, label maps"),
    Command("track", "follow the objects of a video"),
    Command("train", "train a model on your images"),
    Command("eval", "measure a model on a dataset"),
    Command("check", "look for mistakes in a dataset before training on it"),
    Command("split", "divide a dataset into training and validation"),
    Command("data", "make a dataset: the shapes world, with exact masks"),
    Command("convert", "convert weights: Hugging Face, safetensors, ImageNet backbones; pack a training"),
    Command("export", "write a model as ONNX, torch.export, AOTInductor or TorchScript"),
    Command("serve", "open a web app, and an HTTP API, for images and videos"),
    Command("models", "list the published models"),
    Command("benchmark", "time a model on this machine"),
)
COMMANDS = {c.name: c for c in _ALL if importlib.util.find_spec(c.module) is not None}


def overview() -> str:
    """Return the text of `mask2former --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {command.name:{width}}  {command.help}" for command in COMMANDS.values())
    return f"""usage: {PROGRAM} COMMAND ...

Segment images and videos with Mask2Former, and train models of your own.

commands:
{rows}

examples:
  {PROGRAM} predict cells/ --output out/              # every image of a directory, with the included model
  {PROGRAM} predict photo.jpg --model coco-panoptic-swin-t
  {PROGRAM} track clip.mp4 --counts counts.csv
  {PROGRAM} serve                                   # a web app on http://127.0.0.1:7860
  {PROGRAM} models --task panoptic

{PROGRAM} COMMAND --help explains a command with its defaults, {PROGRAM} --version shows what is installed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, `sys.argv` by default; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if arguments[:1] == ["help"] and arguments[1:]:
            return main([arguments[1], "--help"])
        print(overview(), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(version_report())
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        hint = did_you_mean(arguments[0], COMMANDS) or f" '{PROGRAM} --help' lists them."
        return _error(f"there is no command {arguments[0]!r}.{hint}")
    return _run(command, arguments[1:])


def _run(command: Command, arguments: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parsed = argparse.Namespace(debug="--debug" in arguments)  # until they are parsed

    def work() -> object:
        module = command.load()
        parser = CommandParser(f"{PROGRAM} {command.name}", module.DESCRIPTION)
        module.add_arguments(parser)
        return module.run(parser.parse_args(arguments, parsed))

    try:
        return run_guarded(work, debug=parsed.debug)
    except SystemExit as stop:  # of argparse, which has printed help or an error
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else _error(str(stop.code))


def _error(text: str, status: int = 2) -> int:
    print(f"error: {text}", file=sys.stderr)
    return status
