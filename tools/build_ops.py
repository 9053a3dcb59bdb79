#!/usr/bin/env python3
"""Compile the kernels of ``mask2former/ops``: one library for CPU, one for CUDA.

    python tools/build_ops.py        into this checkout, for the torch of the Python that runs the script

Both use LibTorch's stable ABI and no symbol of Python: a library runs with every torch >= 2.10 and every Python. So
torch is only looked at for its headers, never imported. setup.py calls this for wheels, tools/install.py for
environments. ``MASK2FORMER_BUILD_OPS`` says what is compiled, see ``parse_request``; ``CXX``, ``CUDA_HOME``,
``TORCH_CUDA_ARCH_LIST`` and ``MAX_JOBS`` mean what they mean elsewhere. Standard library only, Python 3.10 to 3.13.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_library import CompileError, Library, Say, bring_up_to_date, jobs, put

ROOT = Path(__file__).resolve().parent.parent
OPS = Path("mask2former/ops")  # relative to ROOT, where the compilers run
CSRC = OPS / "csrc"
OBJECTS = Path("build/ops")

VARIABLE = "MASK2FORMER_BUILD_OPS"
PARTS = ("cpu", "cuda")
MINIMUM_TORCH = (2, 10)
COMMON_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL", f"-I{CSRC}")
# Chosen at run time by what the processor can do.
X86_FLAGS = {
    "kernel_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
    "kernel_avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}
CUDA_TARGETS = (80, 90, 100, 120)  # A100, H100, B200, RTX 50; relatives such as 8.6 and 8.9 run code for 8.0
OLDEST_CUDA_TARGET = 80  # the kernels use instructions that came with it

WITHOUT = "PyTorch code takes the op's place."


class Unavailable(Exception):
    """A part that cannot be compiled here: ``why``, and the ``remedy``."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}. {remedy}")


class NoCuda(Unavailable):
    """This machine or its torch has no CUDA, which nobody needs to repair."""


class BuildError(Exception):
    """A part that ``MASK2FORMER_BUILD_OPS`` demands cannot be compiled."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its directory, version, and CUDA version (None in a CPU-only build)."""

    directory: Path
    version: str
    cuda: str | None


def parse_request(text: str | None) -> tuple[tuple[str, ...], tuple[type[Unavailable], ...]]:
    """``MASK2FORMER_BUILD_OPS`` -> (parts to compile, the reasons for which one may be left out).

    Unset: what can be compiled. "0": nothing. "cpu", "cuda" or "cpu,cuda": exactly these, or an error. "1": both, or an
    error; only a machine or a torch without CUDA excuses the CUDA part.
    """
    text = (text or "").strip().lower()
    plain = {"": (PARTS, (Unavailable,)), "0": ((), ()), "1": (PARTS, (NoCuda,))}
    if text in plain:
        return plain[text]
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(PARTS):
        raise BuildError(f"{VARIABLE}={text}: must be 0, 1, cpu, cuda or cpu,cuda")
    return tuple(name for name in PARTS if name in names), ()


# --- what is there ---


def package_directories() -> list[Path]:
    """Where the packages of this Python are; in a build that pip isolates, those of the Python that runs pip."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    installed = [sysconfig.get_path(name, vars=v) for v in ({}, base) for name in ("platlib", "purelib")]
    return [Path(path) for path in [*sys.path, *installed, site.getusersitepackages()] if path]


def find_torch(directories: Iterable[Path]) -> Torch:
    """The first torch in ``directories``; Unavailable where there is none that the op can be compiled for."""
    directory = next((path / "torch" for path in directories if (path / "torch/version.py").is_file()), None)
    if directory is None:
        raise Unavailable(
            "no torch is installed where this is built",
            "Install torch first and use: pip install --no-build-isolation .",
        )
    text = (directory / "version.py").read_text("utf-8")
    version, cuda = (
        re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE) for name in ("__version__", "cuda")
    )
    found = Torch(directory, version[1] if version else "0", cuda[1] if cuda else None)
    if tuple(map(int, re.findall(r"\d+", found.version)[:2])) < MINIMUM_TORCH:
        minimum = ".".join(map(str, MINIMUM_TORCH))
        raise Unavailable(f"torch {found.version} is older than {minimum}", f"Update torch, or stay without: {WITHOUT}")
    if not (directory / "include/torch/csrc/stable/library.h").is_file():
        raise Unavailable(f"torch {found.version} in {directory} has no C++ headers", "Install torch from PyPI.")
    return found


def find_compiler() -> list[str]:
    """The C++ compiler, as the start of a command."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise Unavailable(
            "no C++ compiler found (CXX, c++, g++, clang++)", "Install one (Debian, Ubuntu: sudo apt install g++)."
        )
    return [found]


def find_nvcc(torch: Torch) -> str:
    """nvcc of CUDA_HOME, of PATH, of /usr/local/cuda, or of the pip package nvidia-cuda-nvcc beside torch."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    places = [home / "bin/nvcc" for home in homes]
    places += [Path(on_path)] if on_path else []
    places += [Path("/usr/local/cuda/bin/nvcc"), *torch.directory.parent.glob("nvidia/cu[0-9]*/bin/nvcc")]
    found = next((str(path) for path in places if os.access(path, os.X_OK)), None)
    if found is None:
        raise NoCuda(
            "nvcc not found (CUDA_HOME, PATH, /usr/local/cuda)",
            f"Install the CUDA toolkit {torch.cuda} to compile it.",
        )
    return found


def cuda_flags(requested: str, known: Sequence[int]) -> list[str]:
    """nvcc's -gencode flags.

    Args:
        requested: ``TORCH_CUDA_ARCH_LIST``, such as "8.6;9.0a;12.0+PTX"; "" for ``CUDA_TARGETS`` and PTX of the newest.
        known: what this nvcc compiles for, such as 80 for compute_80. What else is requested is left out, and so is
            what is too old for the kernels: containers set a list that is meant for every compiler and project.
    """
    known = [number for number in known if number >= OLDEST_CUDA_TARGET]
    names = re.split(r"[;,\s]+", requested.strip(" ;,")) if requested.strip(" ;,") else []
    if not names:
        names = [dotted(number) for number in CUDA_TARGETS if number in known]
        names[-1:] = [f"{name}+PTX" for name in names[-1:]]
    flags = []
    for name in names:
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if found is None:
            raise Unavailable(f"TORCH_CUDA_ARCH_LIST names {name!r}", "Write numbers, for example 9.0 or 8.6+PTX.")
        if int(found[1] + found[2]) not in known:
            continue
        number = found[1] + found[2] + found[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if found[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if not flags:
        possible = ", ".join(map(dotted, known)) or "nothing new enough"
        raise Unavailable(
            f"TORCH_CUDA_ARCH_LIST is {requested!r}, and this nvcc can compile the op for {possible}",
            "Change the variable, or point CUDA_HOME to another CUDA toolkit.",
        )
    return flags


def dotted(number: int) -> str:
    """120 -> "12.0"."""
    return f"{number // 10}.{number % 10}"


# --- commands ---


def sources(part: str) -> list[Path]:
    """The source files of one part, relative to ROOT."""
    found = [path for suffix in ("cpp", "cu") for path in sorted((ROOT / CSRC / part).glob(f"*.{suffix}"))]
    if not found:
        raise Unavailable(f"{CSRC / part} holds no source files", "Restore the checkout.")
    return [path.relative_to(ROOT) for path in found]


def headers() -> list[Path]:
    """What any source file may include."""
    found = [path for path in (ROOT / CSRC).rglob("*.*") if path.suffix in (".h", ".inl", ".cuh")]
    return [path.relative_to(ROOT) for path in found]


def library(
    part: str, commands: Mapping[Path, tuple[str, ...]], linker: Sequence[str], flags: Sequence[str]
) -> Library:
    """Complete the commands, source file -> compiler and flags, by their output files."""
    steps = {}
    for source, command in commands.items():
        target = OBJECTS / part / f"{source.name}.o"
        steps[target] = source, (*command, "-c", str(source), "-o", str(target))
    path = OBJECTS / f"_{part}.abi3.so"
    link = (*linker, "-shared", "-o", str(path), *map(str, steps), *flags)
    return Library(path, steps, tuple(headers()), link)


def plan_cpu(torch: Torch) -> Library:
    """Commands for the CPU library; the files for x86 are left out on other processors."""
    compiler = find_compiler()
    files = sources("cpu")
    flags = [*COMMON_FLAGS, "-isystem", str(torch.directory / "include"), "-Wall", "-fPIC", "-fvisibility=hidden"]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        files = [path for path in files if path.name not in X86_FLAGS]
        flags.append("-DMASK2FORMER_BASELINE_ONLY")
    commands = {source: (*compiler, *flags, *X86_FLAGS.get(source.name, ())) for source in files}
    if sys.platform == "darwin":
        return library("cpu", commands, compiler, ["-undefined", "dynamic_lookup"])
    # No rpath: the loader takes the libtorch_cpu.so that the process has loaded already.
    return library("cpu", commands, compiler, [f"-L{torch.directory / 'lib'}", "-ltorch_cpu", "-Wl,-z,defs", "-Wl,-s"])


def plan_cuda(torch: Torch) -> Library:
    """Commands for the CUDA library; NoCuda where nvcc or CUDA in torch is missing."""
    if torch.cuda is None:
        raise NoCuda(f"torch {torch.version} has no CUDA", "For a GPU, install another torch (INSTALL.md, 'GPU').")
    nvcc = find_nvcc(torch)
    version, known = ask_nvcc(nvcc)
    if version.split(".")[0] != torch.cuda.split(".")[0]:
        raise Unavailable(
            f"{nvcc} is CUDA {version}, torch {torch.version} is built for CUDA {torch.cuda}",
            "Install a CUDA toolkit with the same first number and point CUDA_HOME to it.",
        )
    flags = [*COMMON_FLAGS, "-DUSE_CUDA", "-isystem", str(torch.directory / "include"), "--expt-relaxed-constexpr"]
    # Code for many GPUs: compile it in parallel (one file takes as long as all others) and pack it, to a sixth.
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", f"--threads={jobs()}", "-Xfatbin=-compress-all"]
    flags += cuda_flags(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), known)
    link = ["--no-device-link", "--cudart=static", f"-L{torch.directory / 'lib'}"]
    beside = Path(nvcc).resolve().parent.parent / "lib"
    if (beside / "libcudart_static.a").is_file():  # the pip package's nvcc does not look there by itself
        link.append(f"-L{beside}")
    # The static CUDA runtime must stay private: other libraries of the process have their own.
    link += ["-ltorch_cuda", "-ltorch_cpu", "-Xlinker=--exclude-libs,ALL", "-Xlinker=-z,defs", "-Xlinker=-s"]
    return library("cuda", {source: (nvcc, *flags) for source in sources("cuda")}, [nvcc], link)


def ask_nvcc(nvcc: str) -> tuple[str, list[int]]:
    """(version, such as "13.0"; the numbers of the architectures that it knows)."""
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+\.\d+)", told)
    known = sorted({int(number) for number in re.findall(r"compute_(\d+)", listed)})
    if version is None or not known:
        raise Unavailable(f"{nvcc} does not work", "Repair the CUDA toolkit, or point CUDA_HOME to another.")
    return version[1], known


PLANS = {"cpu": plan_cpu, "cuda": plan_cuda}


# --- carrying it out ---


def build_part(part: str, directory: Path, torch_directories: Iterable[Path], say: Say) -> Path:
    """Compile one part into ``directory``; Unavailable where that is not possible."""
    if sys.platform == "win32":
        raise Unavailable("there is no build for Windows", WITHOUT)
    start = time.monotonic()
    try:
        wanted = PLANS[part](find_torch(torch_directories))
        changed = bring_up_to_date(wanted, ROOT, f"compiled op, {part}", say)
        path = put(ROOT / wanted.path, directory)
    except CompileError as error:
        raise Unavailable(str(error), f"Please report these lines; {VARIABLE}=0 avoids the attempt.") from error
    except OSError as error:
        raise Unavailable(str(error), f"Repair it, or stay without: {WITHOUT}") from error
    state = f"compiled in {time.monotonic() - start:.1f} s" if changed else "up to date"
    say(f"compiled op, {part}: {state}, {path.stat().st_size / 1e6:.2f} MB, {path}")
    return path


def build(
    directory: Path,
    torch_directories: Iterable[Path] | None = None,
    parts: Sequence[str] = PARTS,
    request: str | None = None,
    say: Say = print,
) -> list[Path]:
    """Compile what is wanted and possible here.

    Args:
        directory: where the libraries go.
        torch_folders: where to look for torch; None: the packages of this Python.
        parts: what to compile, before ``request`` narrows it.
        request: as ``MASK2FORMER_BUILD_OPS``, see ``parse_request``.
        say: prints a line; one for every part that is compiled or left out.

    Returns:
        The libraries that are in ``directory`` now.

    Raises:
        BuildError: a part that ``request`` demands cannot be compiled.
    """
    wanted, excuses = parse_request(request)
    places = list(package_directories() if torch_directories is None else torch_directories)
    built: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for part in (part for part in wanted if part in parts):
        try:
            built.append(build_part(part, directory, places, say))
        except Unavailable as reason:
            if not isinstance(reason, excuses):
                raise BuildError(f"compiled op, {part}: {VARIABLE}={request} demands it. {reason}") from reason
            left_out.setdefault(str(reason), []).append(part)
            drop_outdated(directory / f"_{part}.abi3.so", part)
    for text, names in left_out.items():
        say(f"compiled op, {' and '.join(names)}: left out, {text}")
    return built


def drop_outdated(file: Path, part: str) -> None:
    """Remove a library that older sources made: its arguments may differ from those of today."""
    if file.is_file():
        inputs = [*(ROOT / path for path in headers()), *(ROOT / CSRC / part).glob("*.c*")]
        if any(path.stat().st_mtime > file.stat().st_mtime for path in inputs):
            file.unlink()


def main() -> int:
    """``make ops``: an explicit wish, so a failure is an error unless the variable says otherwise."""
    request = os.environ.get(VARIABLE) or "1"
    try:
        if not parse_request(request)[0]:
            print(f"{VARIABLE}={request}: nothing is compiled")
        build(ROOT / OPS, request=request)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
