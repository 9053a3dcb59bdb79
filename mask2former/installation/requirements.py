"""What has to be installed, and in which versions."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from .environment import Environment, release
from .messages import InstallError
from .project import Project

MIN_TORCH = (2, 6)
TORCH_STACK = re.compile(r"(torch|torchvision|triton|pytorch-triton.*|nvidia-.*|cuda-.*)")
OPENCV = {"opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"}


def read_pins(project: Project) -> list[tuple[str, str]]:
    """Return (name, line) of every line of constraints.txt; lines may end with a marker for pip."""
    lines = project.constraints.read_text("utf-8").splitlines()
    return [(line.partition("==")[0], line) for line in lines if line and not line.startswith("#")]


def build_setuptools(project: Project) -> str:
    """Return the lowest version of setuptools that builds a checkout; Python 3.10 has no TOML reader."""
    file = project.root / "pyproject.toml"
    found = re.search(r'^requires = \["setuptools>=([\d.]+)"\]', file.read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise InstallError(f"{file} names no setuptools to build with. Restore the file from git.")
    return found[1]


def torch_to_install(env: Environment, pins: Sequence[tuple[str, str]], mode: str) -> list[str]:
    """Return what pip must install of torch and torchvision; nothing where the installed pair stays.

    ``mode``: "auto" keeps torch >= 2.6 with its torchvision, and takes the tested pair where there is none; "keep"
    never installs torch; "pinned" replaces whatever is there by the tested pair. InstallError where the user must
    decide.
    """
    torch, vision = env.packages.get("torch"), env.packages.get("torchvision")
    if torch is None and mode == "keep":
        raise InstallError(f"--torch keep: {env.python} has no torch. Install it first, or leave out --torch keep.")
    if torch is None or mode == "pinned":
        installed = [f"torch=={str(torch).partition('+')[0]}", f"torchvision=={str(vision).partition('+')[0]}"]
        pair = [line for name, line in pins if name in ("torch", "torchvision")]
        return [] if installed == pair else pair
    if release(torch) < MIN_TORCH:
        raise InstallError(
            f"torch {torch} is installed; Mask2Former needs 2.6 or newer. It was left as it is. Either use an "
            "environment of its own (--venv .venv), or have torch replaced: --torch pinned"
        )
    matching, local = f"0.{release(torch)[1] + 15}", torch.partition("+")[2]  # holds for torch 2
    if vision is None and mode == "auto" and not local:
        return [f"torchvision=={matching}.*"]
    if vision is None or (release(torch)[0] == 2 and release(vision)[:2] != release(matching)):
        # A +cpu or +cu126 build comes from another index than PyPI, and so must its torchvision.
        index = f" --index-url https://download.pytorch.org/whl/{local}" if re.fullmatch(r"cpu|cu\d+", local) else ""
        raise InstallError(
            f"torch {torch} and torchvision {vision} do not belong together. Both were left as they are. Install the "
            f'one that fits: {env.python} -m pip install "torchvision=={matching}.*"{index}   or have '
            "replace both by the tested pair: --torch pinned"
        )
    return []


def constraints(env: Environment, pins: Sequence[tuple[str, str]], new_torch: Sequence[str]) -> list[list[str]]:
    """Return the lists of constraints for pip to try in turn.

    The first keeps every installed package at its version and takes the tested one of all others; the second does
    without the tested ones; the third, for where an installed package is too old, fixes PyTorch only.
    """
    replaced = any(text.startswith("torch==") for text in new_torch)  # and with it all that torch brings
    kept = {name for name in env.packages if not (replaced and TORCH_STACK.fullmatch(name))}
    kept = {name for name in kept if re.fullmatch(r"\d[\w.+!]*", env.packages[name])}
    held = [(name, f"{name}=={env.packages[name]}") for name in sorted(kept)]
    tested = [(name, line) for name, line in pins if name not in kept and (replaced or not TORCH_STACK.fullmatch(name))]
    stack = [(name, line) for name, line in held + tested if TORCH_STACK.fullmatch(name)]
    return [[line for _, line in lines] for lines in (held + tested, held, stack)]


def select_requirements(env: Environment, extras: Set[str]) -> list[str]:
    """Return what the metadata of the installed project requires with ``extras``; torch is decided elsewhere."""
    unknown = sorted(extras - set(env.extras))
    if unknown:
        raise InstallError(f"--extras: there is no extra {unknown[0]!r}. Choose from: {', '.join(sorted(env.extras))}.")
    selected = []
    for text in env.requires:
        requirement, _, marker = text.partition(";")
        extra = re.search(r"""\s*(?:\band\s+)?\bextra\s*==\s*["']([^"']+)["']""", marker)
        name = re.split(r"[^\w.-]", requirement.strip())[0].lower()
        # Any of OpenCV's packages will do; two of them would overwrite each other's files.
        decided = name in ("torch", "torchvision") or (name in OPENCV and OPENCV & set(env.packages))
        if not decided and (extra is None or extra[1] in extras):
            selected.append(f"{requirement};{marker.replace(extra[0], '') if extra else marker}".rstrip("; "))
    return selected
