"""Where this package lies: in a checkout of the repository, or installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "https://github.com/mask2former/mask2former"
GUIDE = f"{REPOSITORY}/blob/main/INSTALL.md"


@dataclass(frozen=True)
class Project:
    """The package directory ``name`` in the directory ``root``, a checkout or ``site-packages``."""

    root: Path
    name: str = "mask2former"

    @property
    def is_checkout(self) -> bool:
        """Return whether pip can install ``root``, rather than another project that holds a copy of the package."""
        file = self.root / "pyproject.toml"
        if not file.is_file() or not (self.root / "setup.py").is_file():
            return False
        return re.search(r'^name = "mask2former"$', file.read_text("utf-8"), re.MULTILINE) is not None

    @property
    def ops(self) -> Path:
        """Return the directory of the op, relative to ``root``."""
        return Path(self.name, "ops")

    @property
    def csrc(self) -> Path:
        """Return the directory of the sources of the op, relative to ``root``."""
        return self.ops / "csrc"

    @property
    def constraints(self) -> Path:
        """Return the file of tested versions."""
        return self.root / self.name / "installation/constraints.txt"

    def declarations(self) -> list[Path]:
        """Return the files that say what has to be installed, as far as they are there."""
        names = ("setup.py", "pyproject.toml") if self.is_checkout else ()
        files = [*(self.root / name for name in names), self.constraints, self.root / self.name / "__init__.py"]
        return [file for file in files if file.exists()]

    def command(self, *arguments: str) -> str:
        """Return the command that installs, for messages."""
        return " ".join([f"python {'tools/install.py' if self.is_checkout else f'-m {self.name} setup'}", *arguments])

    def own_environment(self) -> str:
        """Return the advice to use another environment, for messages."""
        if self.is_checkout:
            return "Use an environment of its own: python3 tools/install.py --venv .venv"
        return (
            "Use an environment of its own: python3 -m venv .venv, install the package into it with .venv/bin/pip, and "
            f"run .venv/bin/python -m {self.name} setup"
        )


def this_project() -> Project:
    """Return the project that this very file belongs to."""
    package = Path(__file__).resolve().parents[1]
    return Project(package.parent, package.name)
