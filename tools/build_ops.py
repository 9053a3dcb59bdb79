#!/usr/bin/env python3
"""Compile the kernels of ``mask2former/ops``: one library for CPU, one for CUDA.

    python tools/build_ops.py        into this checkout, for the torch of the Python that runs the script

Both use LibTorch's stable ABI and no Python symbols: a library works with every torch >= 2.10 and every Python. Only
the headers of torch are used; it is never imported. setup.py calls this for wheels, tools/install.py for
environments. ``MASK2FORMER_BUILD_OPS`` selects what is compiled, see ``parse_request``; ``CXX``, ``CUDA_HOME``,
``TORCH_CUDA_ARCH_LIST`` and ``MAX_JOBS`` have their usual meaning. Standard library only, Python 3.10 to 3.13.
"""

from __future__ import annotations

import argparse
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
# Selected at run time by the instruction sets of the processor.
X86_FLAGS = {
    "kernel_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
    "kernel_avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}
CUDA_TARGETS = (80, 90, 100, 120)  # A100, H100, B200, RTX 50; 8.6 and 8.9 run code for 8.0
OLDEST_CUDA_TARGET = 80  # the kernels use instructions introduced with it

WITHOUT = "The PyTorch implementation is used instead."


class Unavailable(Exception):
    """A part that cannot be compiled here: ``why``, and the ``remedy``."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}. {remedy}")


class NoCuda(Unavailable):
    """This machine or its torch has no CUDA, which is not an error."""


class BuildError(Exception):
    """A part that ``MASK2FORMER_BUILD_OPS`` requires cannot be compiled."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its directory, version, and CUDA version (None in a CPU-only build)."""

    directory: Path
    version: str
    cuda: str | None


def parse_request(text: str | None) -> tuple[tuple[str, ...], tuple[type[Unavailable], ...]]:
    """Parse ``MASK2FORMER_BUILD_OPS`` into the parts to compile, and the reasons for which one may be left out.

    Unset: what can be compiled. "0": nothing. "cpu", "cuda" or "cpu,cuda": exactly these, or an error. "1": both, or an
    error, except that the CUDA part is left out on a machine or with a torch without CUDA.
    """
    text = (text or "").strip().lower()
    plain = {"": (PARTS, (Unavailable,)), "0": ((), ()), "1": (PARTS, (NoCuda,))}
    if text in plain:
        return plain[text]
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(PARTS):
        raise BuildError(f"{VARIABLE}={text}: must be 0, 1, cpu, cuda or cpu,cuda")
    return tuple(name for name in PARTS if name in names), ()


# --- environment ---


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
            "Install torch first and use: pip install --no-build-isolation .",
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


# --- commands ---


def sources(part: str) -> list[Path]:
    """Return the source files of one part, relative to ROOT."""
    files = [path for suffix in ("cpp", "cu") for path in sorted((ROOT / CSRC / part).glob(f"*.{suffix}"))]
    if not files:
        raise Unavailable(f"{CSRC / part} contains no source files", "Restore the checkout.")
    return [path.relative_to(ROOT) for path in files]


def headers() -> list[Path]:
    """Return the header files, relative to ROOT."""
    files = [path for path in (ROOT / CSRC).rglob("*.*") if path.suffix in (".h", ".inl", ".cuh")]
    return [path.relative_to(ROOT) for path in files]


def library(
    part: str, commands: Mapping[Path, tuple[str, ...]], linker: Sequence[str], flags: Sequence[str]
) -> Library:
    """Build the rules of a library from its commands, source file -> compiler and flags."""
    rules = {}
    for source, command in commands.items():
        target = OBJECTS / part / f"{source.name}.o"
        rules[target] = source, (*command, "-c", str(source), "-o", str(target))
    path = OBJECTS / f"_{part}.abi3.so"
    link = (*linker, "-shared", "-o", str(path), *map(str, rules), *flags)
    return Library(path, rules, tuple(headers()), link)


def plan_cpu(torch: Torch) -> Library:
    """Return the rules of the CPU library; the files for x86 are skipped on other processors."""
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
    """Return the rules of the CUDA library; NoCuda if nvcc is missing or torch has no CUDA."""
    if torch.cuda is None:
        raise NoCuda(f"torch {torch.version} has no CUDA", "For a GPU, install another torch (INSTALL.md, 'GPU').")
    nvcc = find_nvcc(torch)
    version, known = ask_nvcc(nvcc)
    if version.split(".")[0] != torch.cuda.split(".")[0]:
        raise Unavailable(
            f"{nvcc} is CUDA {version}, torch {torch.version} is built for CUDA {torch.cuda}",
            "Install a CUDA toolkit with the same major version and point CUDA_HOME to it.",
        )
    flags = [*COMMON_FLAGS, "-DUSE_CUDA", "-isystem", str(torch.directory / "include"), "--expt-relaxed-constexpr"]
    # Code for many GPUs: compile it in parallel (one file dominates the time) and compress it to a sixth.
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", f"--threads={jobs()}", "-Xfatbin=-compress-all"]
    flags += cuda_flags(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), known)
    link = ["--no-device-link", "--cudart=static", f"-L{torch.directory / 'lib'}"]
    pip_lib = Path(nvcc).resolve().parent.parent / "lib"
    if (pip_lib / "libcudart_static.a").is_file():  # the pip package's nvcc does not look there by itself
        link.append(f"-L{pip_lib}")
    # Hide the symbols of the static CUDA runtime: other libraries of the process have their own copy.
    link += ["-ltorch_cuda", "-ltorch_cpu", "-Xlinker=--exclude-libs,ALL", "-Xlinker=-z,defs", "-Xlinker=-s"]
    return library("cuda", {source: (nvcc, *flags) for source in sources("cuda")}, [nvcc], link)


def ask_nvcc(nvcc: str) -> tuple[str, list[int]]:
    """Return the version of nvcc, such as "13.0", and the numbers of the architectures that it supports."""
    version_text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+\.\d+)", version_text)
    known = sorted({int(number) for number in re.findall(r"compute_(\d+)", listed)})
    if version is None or not known:
        raise Unavailable(f"{nvcc} does not work", "Reinstall the CUDA toolkit, or point CUDA_HOME to another.")
    return version[1], known


PLANS = {"cpu": plan_cpu, "cuda": plan_cuda}


# --- build ---


def build_part(part: str, directory: Path, torch_directories: Iterable[Path], say: Say) -> Path:
    """Compile one part into ``directory``; Unavailable if that is not possible."""
    if sys.platform == "win32":
        raise Unavailable("there is no build for Windows", WITHOUT)
    start = time.monotonic()
    try:
        rules = PLANS[part](find_torch(torch_directories))
        changed = bring_up_to_date(rules, ROOT, f"compiled op, {part}", say)
        path = put(ROOT / rules.path, directory)
    except CompileError as error:
        raise Unavailable(str(error), f"Please report these lines; {VARIABLE}=0 skips the compilation.") from error
    except OSError as error:
        raise Unavailable(str(error), f"Fix it, or do without: {WITHOUT}") from error
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
    """Compile the requested parts that can be compiled here.

    Args:
        directory: where the libraries are written.
        torch_directories: where to search for torch; None: the packages of this Python.
        parts: the parts to consider; ``request`` may exclude some.
        request: a value of ``MASK2FORMER_BUILD_OPS``, see ``parse_request``.
        say: prints a line; one for every part that is compiled or left out.

    Returns:
        The libraries that were built or are up to date.

    Raises:
        BuildError: a part that ``request`` requires cannot be compiled.
    """
    requested, excused = parse_request(request)
    search_path = list(package_directories() if torch_directories is None else torch_directories)
    built: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for part in (part for part in requested if part in parts):
        try:
            built.append(build_part(part, directory, search_path, say))
        except Unavailable as reason:
            if not isinstance(reason, excused):
                raise BuildError(f"compiled op, {part}: {VARIABLE}={request} requires it. {reason}") from reason
            left_out.setdefault(str(reason), []).append(part)
            drop_outdated(directory / f"_{part}.abi3.so", part)
    for text, names in left_out.items():
        say(f"compiled op, {' and '.join(names)}: left out, {text}")
    return built


def drop_outdated(file: Path, part: str) -> None:
    """Delete a library that was built from older sources: its signatures may differ from the current ones."""
    if file.is_file():
        inputs = [*(ROOT / path for path in headers()), *(ROOT / CSRC / part).glob("*.c*")]
        if any(path.stat().st_mtime > file.stat().st_mtime for path in inputs):
            file.unlink()


def main(arguments: Sequence[str] = ()) -> int:
    """Run the command line (``make ops``): by default both parts are required, as with the value 1."""
    parser = argparse.ArgumentParser(
        description="Compile the deformable-attention op for CPU and, where nvcc is, for CUDA, into the checkout.",
        epilog=f"The environment variable {VARIABLE} chooses the parts: 1 (both, the default), cpu, cuda, or 0.",
    )
    parser.parse_args(arguments)
    request = os.environ.get(VARIABLE) or "1"
    try:
        if not parse_request(request)[0]:
            print(f"{VARIABLE}={request}: nothing to compile")
        build(ROOT / OPS, request=request)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
