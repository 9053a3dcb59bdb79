"""`mask2former setup`: install what pip could not, compile the op, and check that everything works."""

from __future__ import annotations

import argparse
import sys

from ..installation.command import add_arguments as add_installation_arguments
from ..installation.command import install
from ..installation.messages import InstallError
from ..installation.project import GUIDE, this_project

HELP = "install PyTorch and detectron2 where they are missing, and compile the op"
DESCRIPTION = f"""Complete this Python environment for Mask2Former.

It keeps a PyTorch of 2.6 or newer with its torchvision, and a detectron2 that can be imported; what is missing is
installed in tested versions. With a C++ compiler the op of the pixel decoder is compiled into the package. At the end
everything is imported once. A second run finds nothing to do and needs no connection; run it again after an upgrade.

  mask2former setup --dry-run               only print what would be done
  mask2former setup
  mask2former setup --extras video          with what reads and writes videos
  mask2former setup --torch pinned          replace a PyTorch that does not work by the tested one
  mask2former setup --ops all               CUDA code for the op too, on a machine without a GPU
  mask2former setup --wheels DIRECTORY      without a connection

More: {GUIDE}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_installation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Install; return the exit status: 0, or 2 after a message about what the user has to decide or repair."""
    try:
        install(args, this_project())
    except InstallError as error:
        print(f"error: not installed. {error.args[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: stopped. The same command continues; finished downloads are kept.", file=sys.stderr)
        return 130
    return 0
