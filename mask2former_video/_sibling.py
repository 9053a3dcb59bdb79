"""The package `mask2former` beside this one, at the top level or inside the same package of another project.

A relative import cannot name it where both are top level, an absolute one where both are vendored.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def core(module: str = "") -> Any:
    """Import `mask2former`, or the module of this name in it.

    Args:
        module: dotted name below the package.
    """
    parent = __name__.rpartition(".")[0].rpartition(".")[0]
    beside = f"{parent}.mask2former"
    package = beside if parent and importlib.util.find_spec(beside) is not None else "mask2former"
    return importlib.import_module(f"{package}.{module}" if module else package)
