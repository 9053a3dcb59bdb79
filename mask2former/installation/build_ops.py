"""Compile the kernels of ``mask2former/ops``: one library for CPU, one for CUDA.

Both use LibTorch's stable ABI and no Python symbols: a library works with every torch >= 2.10 and every Python. Only
the headers of torch are used; it is never imported. setup.py calls this for wheels, ``mask2former setup`` and
tools/install.py for environments, tools/build_ops.py for a checkout. ``MASK2FORMER_BUILD_OPS`` selects what is
compiled, see ``parse_request``; ``CXX``, ``CUDA_HOME``, ``TORCH_CUDA_ARCH_LIST`` and ``MAX_JOBS`` have their usual
meaning.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from .build_library import CompileError, Library, Say, bring_up_to_date, jobs, put
from .project import GUIDE, Project, this_project
from .toolchain import (
    WITHOUT,
    NoCuda,
    Torch,
    Unavailable,
    ask_nvcc,
    cuda_flags,
    find_compiler,
    find_nvcc,
    find_torch,
    has_nvidia_gpu,
    package_directories,
)

VARIABLE = "MASK2FORMER_BUILD_OPS"
PARTS = ("cpu", "cuda")
COMMON_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL")
# Selected at run time by the instruction sets of the processor.
X86_FLAGS = {
    "kernel_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
    "kernel_avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}


class BuildError(Exception):
    """A part that ``MASK2FORMER_BUILD_OPS`` requires cannot be compiled."""


@dataclass(frozen=True)
class Request:
    """The parts to compile, the reasons for which one may be left out, and whether CUDA code needs a GPU here."""

    parts: tuple[str, ...]
    excused: tuple[type[Unavailable], ...]
    only_for_gpu: bool = False


def parse_request(text: str | None) -> Request:
    """Parse ``MASK2FORMER_BUILD_OPS``.

    Unset: what can be compiled and used on this machine, so CUDA code only where an NVIDIA GPU is, because it takes
    minutes. "all": what can be compiled. "0": nothing. "cpu", "cuda" or "cpu,cuda": exactly these, or an error. "1":
    both, or an error, except that the CUDA part is left out without nvcc or with a torch without CUDA.

    Raises:
        BuildError: the text means nothing.
    """
    text = (text or "").strip().lower()
    plain = {
        "": Request(PARTS, (Unavailable,), only_for_gpu=True),
        "all": Request(PARTS, (Unavailable,)),
        "0": Request((), ()),
        "1": Request(PARTS, (NoCuda,)),
    }
    if text in plain:
        return plain[text]
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(PARTS):
        raise BuildError(f"{VARIABLE}={text}: must be 0, 1, all, cpu, cuda or cpu,cuda")
    return Request(tuple(name for name in PARTS if name in names), ())


@dataclass(frozen=True)
class Workshop:
    """What a build works with: the sources in ``project``, the directory for object files, and the torch.

    Compilers run in ``project.root``; paths of sources are relative to it, and ``objects`` may be.
    """

    project: Project
    objects: Path
    torch: Torch

    def sources(self, part: str) -> list[Path]:
        """Return the source files of one part, relative to the root."""
        root, csrc = self.project.root, self.project.csrc
        files = [path for suffix in ("cpp", "cu") for path in sorted((root / csrc / part).glob(f"*.{suffix}"))]
        if not files:
            raise Unavailable(f"{csrc / part} contains no source files", "Restore the checkout, or install again.")
        return [path.relative_to(root) for path in files]

    def flags(self) -> list[str]:
        """Return the flags that both compilers take."""
        return [*COMMON_FLAGS, f"-I{self.project.csrc}", "-isystem", str(self.torch.directory / "include")]

    def library(
        self, part: str, commands: Mapping[Path, tuple[str, ...]], linker: Sequence[str], flags: Sequence[str]
    ) -> Library:
        """Build the rules of a library from its commands, source file -> compiler and flags."""
        rules = {}
        for source, command in commands.items():
            target = self.objects / part / f"{source.name}.o"
            rules[target] = source, (*command, "-c", str(source), "-o", str(target))
        path = self.objects / file_name(part)
        link = (*linker, "-shared", "-o", str(path), *map(str, rules), *flags)
        return Library(path, rules, tuple(headers(self.project)), link)


def file_name(part: str) -> str:
    """Return the name of the library of a part."""
    return f"_{part}.abi3.so"


def headers(project: Project) -> list[Path]:
    """Return the header files, relative to the root."""
    files = (project.root / project.csrc).rglob("*.*")
    return [path.relative_to(project.root) for path in files if path.suffix in (".h", ".inl", ".cuh")]


def plan_cpu(shop: Workshop) -> Library:
    """Return the rules of the CPU library; the files for x86 are skipped on other processors."""
    compiler = find_compiler()
    files = shop.sources("cpu")
    flags = [*shop.flags(), "-Wall", "-fPIC", "-fvisibility=hidden"]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        files = [path for path in files if path.name not in X86_FLAGS]
        flags.append("-DMASK2FORMER_BASELINE_ONLY")
    commands = {source: (*compiler, *flags, *X86_FLAGS.get(source.name, ())) for source in files}
    if sys.platform == "darwin":
        return shop.library("cpu", commands, compiler, ["-undefined", "dynamic_lookup"])
    # No rpath: the loader takes the libtorch_cpu.so that the process has loaded already.
    link = [f"-L{shop.torch.directory / 'lib'}", "-ltorch_cpu", "-Wl,-z,defs", "-Wl,-s"]
    return shop.library("cpu", commands, compiler, link)


def plan_cuda(shop: Workshop) -> Library:
    """Return the rules of the CUDA library; NoCuda if nvcc is missing or torch has no CUDA."""
    torch = shop.torch
    if torch.cuda is None:
        raise NoCuda(f"torch {torch.version} has no CUDA", f"For a GPU, install another torch: {GUIDE}#gpu")
    nvcc = find_nvcc(torch)
    version, known = ask_nvcc(nvcc)
    if version.split(".")[0] != torch.cuda.split(".")[0]:
        raise Unavailable(
            f"{nvcc} is CUDA {version}, torch {torch.version} is built for CUDA {torch.cuda}",
            "Install a CUDA toolkit with the same major version and point CUDA_HOME to it.",
        )
    flags = [*shop.flags(), "-DUSE_CUDA", "--expt-relaxed-constexpr"]
    # Code for many GPUs: compile it in parallel (one file dominates the time) and compress it to a sixth.
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", f"--threads={jobs()}", "-Xfatbin=-compress-all"]
    flags += cuda_flags(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), known)
    link = ["--no-device-link", "--cudart=static", f"-L{shop.torch.directory / 'lib'}"]
    pip_lib = Path(nvcc).resolve().parent.parent / "lib"
    if (pip_lib / "libcudart_static.a").is_file():  # the pip package's nvcc does not look there by itself
        link.append(f"-L{pip_lib}")
    # Hide the symbols of the static CUDA runtime: other libraries of the process have their own copy.
    link += ["-ltorch_cuda", "-ltorch_cpu", "-Xlinker=--exclude-libs,ALL", "-Xlinker=-z,defs", "-Xlinker=-s"]
    return shop.library("cuda", {source: (nvcc, *flags) for source in shop.sources("cuda")}, [nvcc], link)


PLANS = {"cpu": plan_cpu, "cuda": plan_cuda}


def build_part(
    part: str, project: Project, directory: Path, torch_directories: Iterable[Path], only_for_gpu: bool, say: Say
) -> Path:
    """Compile one part into ``directory``; Unavailable if that is not possible, or not wanted on this machine."""
    ready = directory / file_name(part)
    if not project.is_checkout and ready.is_file():  # its sources are installed and removed together with it
        say(f"compiled op, {part}: there, {ready}")
        return ready
    if sys.platform == "win32":
        raise Unavailable("there is no build for Windows", WITHOUT)
    start = time.monotonic()
    try:
        torch = find_torch(torch_directories)
        if part == "cuda" and only_for_gpu and not has_nvidia_gpu():
            raise NoCuda("this machine has no NVIDIA GPU", f"To compile it all the same: {demand(project)}.")
        with object_directory(project) as objects:
            library = PLANS[part](Workshop(project, Path(objects), torch))
            changed = bring_up_to_date(library, project.root, f"compiled op, {part}", say)
            path = put(project.root / library.path, directory)
    except CompileError as error:
        raise Unavailable(str(error), f"Please report these lines; {VARIABLE}=0 skips the compilation.") from error
    except OSError as error:
        raise Unavailable(str(error), f"Fix it, or do without: {WITHOUT}") from error
    state = f"compiled in {time.monotonic() - start:.1f} s" if changed else "up to date"
    say(f"compiled op, {part}: {state}, {path.stat().st_size / 1e6:.2f} MB, {path}")
    return path


def object_directory(project: Project) -> AbstractContextManager[str]:
    """Return where object files go: a checkout keeps them for the next build, an installed package does not."""
    return nullcontext("build/ops") if project.is_checkout else tempfile.TemporaryDirectory()


def demand(project: Project) -> str:
    """Return how to have CUDA code compiled on a machine without a GPU."""
    return f"{project.command('--ops', 'all')} (for pip: {VARIABLE}=all)"


def build(
    project: Project,
    directory: Path | None = None,
    torch_directories: Iterable[Path] | None = None,
    parts: Sequence[str] = PARTS,
    request: str | None = None,
    say: Say = print,
) -> list[Path]:
    """Compile the requested parts that can be compiled here.

    Args:
        project: where the sources are.
        directory: where the libraries are written; None: beside the sources, where they are used.
        torch_directories: where to search for torch; None: the packages of this Python.
        parts: the parts to consider; ``request`` may exclude some.
        request: a value of ``MASK2FORMER_BUILD_OPS``, see ``parse_request``.
        say: prints a line; one for every part that is compiled or left out.

    Returns:
        The libraries that were built or are up to date.

    Raises:
        BuildError: a part that ``request`` requires cannot be compiled.
    """
    asked = parse_request(request)
    directory = project.root / project.ops if directory is None else directory
    search_path = list(package_directories() if torch_directories is None else torch_directories)
    built: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for part in (part for part in asked.parts if part in parts):
        try:
            built.append(build_part(part, project, directory, search_path, asked.only_for_gpu, say))
        except Unavailable as reason:
            if not isinstance(reason, asked.excused):
                raise BuildError(f"compiled op, {part}: {VARIABLE}={request} requires it. {reason}") from reason
            left_out.setdefault(str(reason), []).append(part)
            drop_outdated(project, directory / file_name(part), part)
    for text, names in left_out.items():
        say(f"compiled op, {' and '.join(names)}: left out, {text}")
    return built


def drop_outdated(project: Project, file: Path, part: str) -> None:
    """Delete a library that was built from older sources: its signatures may differ from the current ones."""
    if file.is_file():
        inputs = [project.root / path for path in headers(project)]
        inputs += (project.root / project.csrc / part).glob("*.c*")
        if any(path.stat().st_mtime > file.stat().st_mtime for path in inputs):
            file.unlink()


def main(arguments: Sequence[str] = ()) -> int:
    """Run the command line (``make ops``): by default both parts are required, as with the value 1."""
    parser = argparse.ArgumentParser(
        description="Compile the deformable-attention op for CPU and, where nvcc is, for CUDA, into the checkout.",
        epilog=f"The environment variable {VARIABLE} chooses the parts: 1 (both, the default), all, cpu, cuda, or 0.",
    )
    parser.parse_args(arguments)
    request = os.environ.get(VARIABLE) or "1"
    try:
        if not parse_request(request).parts:
            print(f"{VARIABLE}={request}: nothing to compile")
        build(this_project(), request=request)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
