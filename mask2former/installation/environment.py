"""A Python environment: what is installed in it, and making a virtual one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .messages import InstallError, say

PYTHON_VERSIONS = ((3, 10), (3, 13))  # first and last supported, both included

PROBE = r"""
import importlib.metadata, importlib.util, json, os, re, sys, sysconfig
packages, project = {}, (None, None, None)
for dist in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", dist.metadata["Name"] or "").lower()
    if name and name not in packages:
        packages[name] = dist.version or ""
        if name == "mask2former":
            project = dist.read_text("direct_url.json"), dist.requires, dist.metadata.get_all("Provides-Extra")
def parent(module):  # a mere directory of that name has no origin
    spec = importlib.util.find_spec(module)
    return spec and spec.origin and os.path.dirname(os.path.dirname(spec.origin))
print(json.dumps(dict(
    version=sys.version_info[:2], site_packages=sysconfig.get_path("purelib"), packages=packages, project=project[0],
    requires=project[1] or [], extras=project[2] or [], detectron2=parent("detectron2"), torch=parent("torch"))))
"""


@dataclass(frozen=True)
class Environment:
    """One Python environment, as ``probe`` finds it.

    ``packages`` maps normalized distribution names to versions. ``project`` tells where the installed mask2former lies;
    ``requires`` and ``extras`` are from its metadata. ``detectron2`` and ``torch`` are the directories above these
    modules.
    """

    python: str
    version: tuple[int, int]
    site_packages: str
    packages: Mapping[str, str]
    project: str | None = None
    requires: Sequence[str] = ()
    extras: Sequence[str] = ()
    detectron2: str | None = None
    torch: str | None = None


def check_python(python: str, version: tuple[int, int]) -> None:
    """Raise InstallError for a Python that Mask2Former does not run on."""
    if not PYTHON_VERSIONS[0] <= version <= PYTHON_VERSIONS[1]:
        raise InstallError(
            f"{python} is Python {version[0]}.{version[1]}; Mask2Former needs 3.10 to 3.13. Start again with such "
            "a Python, for example: python3.11 tools/install.py --venv .venv"
        )


def prepare_venv(directory: Path, make: bool) -> str:
    """Return the Python of the virtual environment ``directory``; make the environment if it is not there."""
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and (directory / "pyvenv.cfg").exists():
        return str(python)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InstallError(
            f"{directory} exists and is not a virtual environment, or one that has lost its Python ({python}). "
            "Delete it, or choose another directory for --venv."
        )
    if not make:
        raise InstallError(f"{directory} does not exist yet. Leave out --offline and --dry-run to have it made.")
    check_python(sys.executable, sys.version_info[:2])
    say(f"==> making the virtual environment {directory} with Python {sys.version.split()[0]}")
    done = subprocess.run([sys.executable, "-m", "venv", str(directory)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(directory, ignore_errors=True)
        raise InstallError(
            f"Python could not make a virtual environment:\n{(done.stdout + done.stderr).strip()}\n"
            "On Debian and Ubuntu install the missing part first: sudo apt install python3-venv"
        )
    return str(python)


def run_script(python: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` from where no module lies: it must find what is installed, not what this directory holds."""
    command = [python, "-c", script, *arguments]
    return subprocess.run(command, cwd=Path(python).parent, capture_output=True, text=True, check=False)


def probe(python: str) -> Environment:
    """Look at the environment of ``python``: a quarter of a second, imports nothing heavy."""
    done = run_script(python, PROBE)
    if done.returncode != 0:
        raise InstallError(f"{python} does not work:\n{done.stderr.strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Environment(python=python, **{**found, "version": tuple(found["version"])})


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: ``2.6.0a0+git1`` -> (2, 6, 0), since containers ship such builds as 2.6."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else (0,)
