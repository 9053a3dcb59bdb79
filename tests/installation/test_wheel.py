"""The wheel: what it holds, what its metadata says, and that it works where it is installed."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mask2former
from mask2former.installation.project import this_project
from mask2former.installation.requirements import build_setuptools, read_pins, torch_to_install
from tests.installation.imitation import environment

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mask2former", "mask2former_video")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built in a copy so that the checkout gets no build directory."""
    pytest.importorskip("setuptools", minversion="77", reason="older ones cannot build a wheel by themselves")
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "tools/installation_package.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(copy), str(copy)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options],
        env={**os.environ, "MASK2FORMER_BUILD_OPS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(copy.glob("mask2former-*.whl")))


def test_wheel_carries_every_config_table_and_model_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    configs = {f"mask2former/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) >= 20 and configs <= names
    package = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    data = [
        path
        for path in package
        if path.suffix in (".py", ".json", ".txt", ".css", ".js") or {"bundled", "csrc"} & set(path.parts)
    ]
    assert {path.relative_to(ROOT).as_posix() for path in data} <= names
    assert "mask2former/py.typed" in names
    assert not any(name.startswith(("tests/", "tools/", "configs/", "demo/")) for name in names)
    assert not any(name.endswith(".so") for name in names)  # what is compiled in the checkout
    assert any(name.endswith(".cu") for name in names) and any(name.endswith(".h") for name in names)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(info))


def test_wheel_metadata_states_the_true_dependencies(metadata: Message, wheel: zipfile.ZipFile) -> None:
    assert metadata["Version"] == mask2former.__version__
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(">=3.10,<3.14")
    requires = metadata.get_all("Requires-Dist") or []
    assert "torch>=2.6" in requires
    assert metadata["License-Expression"] == "MIT"
    assert (metadata.get_payload() or "").startswith("# Mask2Former")
    assert not any("detectron2" in text for text in requires)  # not on PyPI: pip could not install the package
    assert set(metadata.get_all("Provides-Extra") or []) == {
        *("demo", "dev", "video", "cityscapes", "docs", "images", "tables", "shapes", "huggingface"),
        *("serve", "export"),
    }
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_every_tested_requirement_is_pinned_within_its_range(minor: int, metadata: Message) -> None:
    python = {**default_environment(), "python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}

    def holds(requirement: Requirement, extra: str = "") -> bool:
        return requirement.marker is None or requirement.marker.evaluate({**python, "extra": extra})

    lines = [Requirement(line) for _, line in read_pins(this_project())]
    pins = {line.name.lower(): next(iter(line.specifier)).version for line in lines if holds(line)}
    assert len(pins) == sum(map(holds, lines)), "two tested versions of a package"
    requires = [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
    tested = [r for r in requires if any(holds(r, extra) for extra in ("", "dev", "demo", "video", "docs", "serve"))]
    assert len(tested) > 20
    for requirement in [Requirement(f"setuptools>={build_setuptools(this_project())}"), *tested]:
        assert requirement.name.lower() in pins, f"{requirement.name} has no tested version"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), str(requirement)
    pair = environment(torch=pins["torch"], torchvision=pins["torchvision"])
    assert torch_to_install(pair, read_pins(this_project()), "auto") == []


# --- in an environment of its own ---


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment that has the wheel, and nothing else."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel.filename)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *options], check=True)
    return python


def execute(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command from where no module lies, without variables that lead Python elsewhere."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [*map(str, arguments)], cwd=python.parent, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_import_names_the_command_and_the_command_runs(installed: Path) -> None:
    done = execute(installed, installed, "-c", "import mask2former")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ImportError: mask2former needs PyTorch and detectron2")
    assert "mask2former setup" in message and "python -m mask2former setup" in message
    script = next(installed.parent.glob("mask2former*"))
    for command in ([script], [installed, "-m", "mask2former"], [installed, "-W", "error", "-m", "mask2former"]):
        done = execute(installed, *command, "setup", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "would install: torch==" in done.stdout and "sal-detectron2" in done.stdout
        assert "setup" in execute(installed, *command, "--help").stdout
        done = execute(installed, *command, "predict", "x.png")  # needs what is missing
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "mask2former setup" in done.stderr


@pytest.mark.slow
def test_installed_package_works_beside_its_libraries(installed: Path) -> None:
    """The libraries of the surrounding environment are lent by a .pth file."""
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = [path for path in installed.parents[1].rglob("site-packages") if path.is_dir()]
    lent = site / "lent.pth"
    lent.write_text("\n".join(libraries))
    try:
        imports = "import mask2former, mask2former.ops, mask2former_video"
        script = f"{imports}; print(mask2former.__file__, len(mask2former.__all__))"
        # torch 2.14 makes a FutureWarning of what older ones call a DeprecationWarning.
        strict = ("-W", "error::FutureWarning", "-W", "error:`torch.jit.script`:DeprecationWarning")
        done = execute(installed, installed, *strict, "-c", script)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.split()[0]).is_relative_to(site)
        done = execute(installed, installed, "-m", "mask2former", "setup", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "kept: torch " in done.stdout and "kept: detectron2" in done.stdout
        assert "would install: mask2former 0.1.0 with" in done.stdout
    finally:
        lent.unlink()
