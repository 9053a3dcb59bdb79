"""What is compiled into an installed package is listed in RECORD, by which pip removes it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.installation.project import Project
from mask2former.installation.record import add_to_record


def make_package(root: Path) -> Path:
    """Write an installed package with its list of files; return the library that was compiled afterwards."""
    info = root / "mask2former-0.1.0.dist-info"
    (root / "mask2former/ops").mkdir(parents=True)
    info.mkdir()
    (root / "mask2former/__init__.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mask2former\nVersion: 0.1.0\n")
    (info / "INSTALLER").write_text("pip\n")
    names = ["mask2former/__init__.py", *(f"{info.name}/{name}" for name in ("METADATA", "INSTALLER", "RECORD"))]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    library = root / "mask2former/ops/_cpu.abi3.so"
    library.write_text("")
    return library


def test_library_is_recorded_once(tmp_path: Path) -> None:
    library = make_package(tmp_path)
    record = tmp_path / "mask2former-0.1.0.dist-info/RECORD"
    before = record.read_text()
    for _ in range(2):
        add_to_record(Project(tmp_path), [library])
    assert record.read_text() == before + "mask2former/ops/_cpu.abi3.so,,\n"
    assert [path.name for path in record.parent.glob("RECORD*")] == ["RECORD"]


def test_package_without_a_distribution_is_left_alone(tmp_path: Path) -> None:
    add_to_record(Project(tmp_path), [tmp_path / "mask2former/ops/_cpu.abi3.so"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pip_removes_the_recorded_library(tmp_path: Path) -> None:
    """Without it the next version would load a library of older sources."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = tmp_path.glob("venv/[Ll]ib/**/site-packages")
    library = make_package(site)
    add_to_record(Project(site), [library])
    (python,) = [path for path in tmp_path.glob("venv/*/python*") if path.stem == "python"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "uninstall", "--yes", "--quiet", "mask2former"]
    subprocess.run(command, check=True, capture_output=True)
    assert not (site / "mask2former").exists()
