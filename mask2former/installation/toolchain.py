"""What the op is compiled with: torch's headers, compilers, and whether there is a GPU to compile for.

Nothing is imported: torch is read from its files.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MINIMUM_TORCH = (2, 10)
CUDA_TARGETS = (80, 90, 100, 120)  # A100, H100, B200, RTX 50; 8.6 and 8.9 run code for 8.0
OLDEST_CUDA_TARGET = 80  # the kernels use instructions introduced with it
DEVICE_FILES = (("/dev", "nvidia[0-9]*"), ("/proc/driver/nvidia/gpus", "*"))
WSL_TOOLS = "/usr/lib/wsl/lib"
WITHOUT = "The PyTorch implementation is used instead."


class Unavailable(Exception):
    """A part that cannot be compiled here: ``why``, and the ``remedy``."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}. {remedy}")


class NoCuda(Unavailable):
    """This machine or its torch has no CUDA, which is not an error."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its directory, version, and CUDA version (None in a CPU-only build)."""

    directory: Path
    version: str
    cuda: str | None


def package_directories() -> list[Path]:
    """Return the package directories of this Python, or in pip's isolated builds those of the Python that runs pip."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    installed = [sysconfig.get_path(name, vars=v) for v in ({}, base) for name in ("platlib", "purelib")]
    return [Path(path) for path in [*sys.path, *installed, site.getusersitepackages()] if path]


def find_torch(directories: Iterable[Path]) -> Torch:
    """Return the first torch in ``directories``; Unavailable if the op cannot be compiled for it, or there is none."""
    directory = next((path / "torch" for path in directories if (path / "torch/version.py").is_file()), None)
    if directory is None:
        raise Unavailable(
            "no torch is installed in the build environment",
            "Install torch first and use pip install --no-build-isolation, or run mask2former setup afterwards.",
        )
    text = (directory / "version.py").read_text("utf-8")
    version, cuda = (
        re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE) for name in ("__version__", "cuda")
    )
    torch = Torch(directory, version[1] if version else "0", cuda[1] if cuda else None)
    if tuple(map(int, re.findall(r"\d+", torch.version)[:2])) < MINIMUM_TORCH:
        minimum = ".".join(map(str, MINIMUM_TORCH))
        raise Unavailable(f"torch {torch.version} is older than {minimum}", f"Update torch, or do without: {WITHOUT}")
    if not (directory / "include/torch/csrc/stable/library.h").is_file():
        raise Unavailable(f"torch {torch.version} in {directory} has no C++ headers", "Install torch from PyPI.")
    return torch


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise Unavailable(
            "no C++ compiler found (CXX, c++, g++, clang++)", "Install one (Debian, Ubuntu: sudo apt install g++)."
        )
    return [compiler]


def find_nvcc(torch: Torch) -> str:
    """Return nvcc from CUDA_HOME, PATH, /usr/local/cuda, or the pip package nvidia-cuda-nvcc beside torch."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    candidates = [home / "bin/nvcc" for home in homes]
    candidates += [Path(on_path)] if on_path else []
    candidates += [Path("/usr/local/cuda/bin/nvcc"), *torch.directory.parent.glob("nvidia/cu[0-9]*/bin/nvcc")]
    nvcc = next((str(path) for path in candidates if os.access(path, os.X_OK)), None)
    if nvcc is None:
        raise NoCuda(
            "nvcc not found (CUDA_HOME, PATH, /usr/local/cuda)",
            f"Install the CUDA toolkit {torch.cuda} to compile it.",
        )
    return nvcc


def has_nvidia_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU: by its device files, else by the driver's ``nvidia-smi``."""
    if any(any(Path(directory).glob(pattern)) for directory, pattern in DEVICE_FILES):
        return True
    tool = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL_TOOLS)
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is no GPU to compile for
        return False
    return listed.returncode == 0 and listed.stdout.startswith("GPU ")


def ask_nvcc(nvcc: str) -> tuple[str, list[int]]:
    """Return the version of nvcc, such as "13.0", and the numbers of the architectures that it supports."""
    version_text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+\.\d+)", version_text)
    known = sorted({int(number) for number in re.findall(r"compute_(\d+)", listed)})
    if version is None or not known:
        raise Unavailable(f"{nvcc} does not work", "Reinstall the CUDA toolkit, or point CUDA_HOME to another.")
    return version[1], known


def cuda_flags(requested: str, known: Sequence[int]) -> list[str]:
    """Return the -gencode flags of nvcc.

    Args:
        requested: ``TORCH_CUDA_ARCH_LIST``, such as "8.6;9.0a;12.0+PTX"; "" for ``CUDA_TARGETS`` and PTX of the newest.
        known: architectures that this nvcc supports, such as 80 for compute_80. Other requested ones are skipped, and
            so are those too old for the kernels, because containers set a list for all compilers and projects.
    """
    known = [number for number in known if number >= OLDEST_CUDA_TARGET]
    names = re.split(r"[;,\s]+", requested.strip(" ;,")) if requested.strip(" ;,") else []
    if not names:
        names = [dotted(number) for number in CUDA_TARGETS if number in known]
        names[-1:] = [f"{name}+PTX" for name in names[-1:]]
    flags = []
    for name in names:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise Unavailable(f"TORCH_CUDA_ARCH_LIST contains {name!r}", "Use numbers, for example 9.0 or 8.6+PTX.")
        if int(match[1] + match[2]) not in known:
            continue
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if not flags:
        possible = ", ".join(map(dotted, known)) or "no supported one"
        raise Unavailable(
            f"TORCH_CUDA_ARCH_LIST is {requested!r}, but this nvcc can compile the op only for {possible}",
            "Change the variable, or point CUDA_HOME to another CUDA toolkit.",
        )
    return flags


def dotted(number: int) -> str:
    """Format an architecture: 120 -> "12.0"."""
    return f"{number // 10}.{number % 10}"
