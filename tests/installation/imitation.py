"""An imitated environment, and imitations of pip, torch and nvcc."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask2former.installation import pip_steps, toolchain
from mask2former.installation.environment import Environment

PINS = [
    ("torch", "torch==2.11.0"),
    ("torchvision", "torchvision==0.26.0"),
    ("triton", "triton==3.6.0"),
    ("nvidia-nccl-cu13", "nvidia-nccl-cu13==2.28.9"),
    ("numpy", 'numpy==2.2.6; python_version < "3.11"'),
    ("numpy", 'numpy==2.4.6; python_version >= "3.11"'),
    ("opencv-python-headless", "opencv-python-headless==5.0.0.93"),
]
PAIR = ["torch==2.11.0", "torchvision==0.26.0"]
REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy>=1.26",
    "opencv-python-headless>=4.8",
    'tomli>=2; python_version < "3.11"',
    'av>=12.0; extra == "video"',
    'ruff>=0.9; extra == "dev"',
    'exceptiongroup>=1; python_version < "3.11" and extra == "dev"',
    'pywin32>=3; (sys_platform == "win32") and extra == "dev"',
]
NVCC_13 = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
NVCC_12_4 = (50, 60, 70, 75, 80, 86, 87, 89, 90)


def environment(**versions: str) -> Environment:
    """An environment with these packages; underscores stand for dashes."""
    packages = {name.replace("_", "-"): version for name, version in versions.items()}
    return Environment("/env/bin/python", (3, 11), "/env/lib", packages)


def imitate_pip(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[list[str]]:
    """Have each call of pip fail with the next of ``answers``, or succeed on ""; return the calls."""
    calls: list[list[str]] = []
    left = list(answers)

    class Process:
        def __init__(self, command: list[str], **options: object) -> None:
            for place, option in enumerate(command[:-1]):
                if option == "--constraint":
                    command[place + 1] = Path(command[place + 1]).read_text()
            calls.append(command)
            self.stderr = [left.pop(0)]
            self.returncode = int(self.stderr != [""])

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(pip_steps.subprocess, "Popen", Process)
    return calls


def make_torch(directory: Path, version: str = "2.11.0+cu130", cuda: str | None = "13.0") -> toolchain.Torch:
    """Write the parts of an installed torch that a build reads."""
    (directory / "torch/include/torch/csrc/stable").mkdir(parents=True)
    (directory / "torch/lib").mkdir()
    (directory / "torch/include/torch/csrc/stable/library.h").write_text("")
    lines = [f"__version__ = '{version}'", f"cuda: Optional[str] = {cuda!r}", "hip: Optional[str] = None"]
    (directory / "torch/version.py").write_text("\n".join(lines))
    return toolchain.Torch(directory / "torch", version, cuda)


def make_nvcc(path: Path, release: str = "13.0") -> Path:
    """Write an nvcc that answers queries and compiles nothing."""
    path.parent.mkdir(parents=True)
    listed = "\\n".join(f"compute_{number}" for number in NVCC_13)
    path.write_text(f'#!/bin/sh\n[ $1 = --version ] && echo "tools, release {release}, V" || printf "{listed}"\n')
    path.chmod(0o755)
    return path
