"""Where the package lies decides what is installed and what messages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask2former.installation.project import Project, this_project

ROOT = Path(__file__).resolve().parents[2]


def test_this_checkout_is_one() -> None:
    project = this_project()
    assert project == Project(ROOT) and project.is_checkout
    assert project.command("--ops", "all") == "python tools/install.py --ops all"
    assert {file.name for file in project.declarations()} == {
        "setup.py",
        "pyproject.toml",
        "constraints.txt",
        "__init__.py",
    }


@pytest.mark.parametrize("name", ["site-packages", "other-project"])
def test_installed_or_copied_package_is_none(name: str, tmp_path: Path) -> None:
    """A project that keeps a copy of the package has files of these names too; it must not be installed."""
    if name == "other-project":
        (tmp_path / "setup.py").write_text("")
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\ndependencies = ["mask2former"]\n')
    project = Project(tmp_path, "copy")
    assert not project.is_checkout
    assert project.command("--torch", "pinned") == "python -m copy setup --torch pinned"
    assert ".venv/bin/python -m copy setup" in project.own_environment()
    assert project.csrc == Path("copy/ops/csrc")
