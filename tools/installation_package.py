"""Loading of ``mask2former/installation`` alone: importing ``mask2former`` would need what is installed by it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = "mask2former_installation"
DIRECTORY = Path(__file__).resolve().parent.parent / "mask2former" / "installation"


def load(module: str) -> ModuleType:
    """Import a module of the package by its name, such as "command"."""
    if NAME not in sys.modules:
        location = [str(DIRECTORY)]
        spec = importlib.util.spec_from_file_location(
            NAME, DIRECTORY / "__init__.py", submodule_search_locations=location
        )
        if spec is None or spec.loader is None or not (DIRECTORY / "__init__.py").is_file():
            raise SystemExit(f"{DIRECTORY} is missing. Restore the checkout: git status")
        package = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{NAME}.{module}")
