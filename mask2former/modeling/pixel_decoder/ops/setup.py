"""Compile the op of this package in place: for `make.sh`, and for programs that call `python setup.py build install`.

The op is part of the package, not a module of its own; there is nothing else to install. Neither torch nor the package
is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

INSTALLATION = Path(__file__).resolve().parents[3] / "installation"
# What other programs pass: all of it means to compile, and to put the result where Python finds it.
COMMANDS = {"build", "install", "develop", "build_ext", "--inplace", "-i", "--user"}


def main(arguments: Sequence[str] = ()) -> int:
    """Compile both libraries, or those of MASK2FORMER_BUILD_OPS; returns 0, or 1 if one cannot be compiled."""
    name = "mask2former_installation"  # alone: importing the package would need what is not installed yet
    package = ModuleType(name)
    package.__path__ = [str(INSTALLATION)]
    sys.modules.setdefault(name, package)
    build_ops = importlib.import_module(f"{name}.build_ops")
    return build_ops.main([word for word in arguments if word not in COMMANDS])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
