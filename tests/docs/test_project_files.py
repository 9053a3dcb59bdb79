"""Project files that no code reads: they can be parsed, and agree with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import mask2former
from tests.docs.markdown import ROOT, pages, text_of

FILES = sorted(
    path
    for pattern in ("*.yml", "*.cff", ".*.yaml", ".github/*/*.yml", "configs/**/*.yaml")
    for path in ROOT.glob(pattern)
)


class AnyTag(yaml.SafeLoader):
    """Reads YAML with custom tags (`!ENV`, those of detectron2) as null."""


AnyTag.add_multi_constructor("", lambda loader, suffix, node: None)


def read(name: str) -> Any:
    return yaml.load((ROOT / name).read_text("utf-8"), AnyTag)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_can_be_read(path: Path) -> None:
    assert read(str(path)) is not None


def test_citation_is_of_this_version_and_names_both_papers() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == mask2former.__version__
    assert citation["license"] == "MIT" and "MIT License" in text_of(ROOT / "LICENSE")
    titles = {reference["title"] for reference in citation["references"]}
    assert citation["preferred-citation"]["title"] in titles
    readme = text_of(ROOT / "README.md")
    assert titles == set(re.findall(r"\btitle += \{(.+)\}", readme))
    names = {f"{a['given-names']} {a['family-names']}" for r in citation["references"] for a in r["authors"]}
    assert names == {name for line in re.findall(r"author += \{(.+)\}", readme) for name in line.split(" and ")}


def test_hooks_of_git_use_the_tested_ruff() -> None:
    constraints = text_of(ROOT / "mask2former" / "installation" / "constraints.txt")
    (tested,) = re.findall(r"^ruff==.*$", constraints, re.MULTILINE)
    (local,) = read(".pre-commit-config.yaml")["repos"]
    used = [hook["additional_dependencies"] for hook in local["hooks"] if hook["id"].startswith("ruff")]
    assert used == [[tested], [tested]]


def test_workflow_runs_everything_on_the_oldest_and_the_newest_python() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["all"]
    project = text_of(ROOT / "pyproject.toml")
    supported = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    assert job["strategy"]["matrix"]["python"] == [supported[0], supported[-1]]
    (step,) = [step for step in job["steps"] if "run" in step]
    assert step["run"] == ".ci/run" and (ROOT / step["run"]).stat().st_mode & 0o111
    assert step["env"]["PYTHON"] == "python${{ matrix.python }}"


def test_bug_reports_ask_for_what_is_needed() -> None:
    fields = {field["id"]: field for field in read(".github/ISSUE_TEMPLATE/bug_report.yml")["body"] if "id" in field}
    assert {"what", "steps", "log", "config", "ops", "versions"} == set(fields)
    assert "python -m mask2former.ops" in fields["ops"]["attributes"]["label"]


def test_site_shows_every_guide() -> None:
    def leaves(node: Any) -> set[str]:
        if isinstance(node, str):
            return {node}
        return set().union(*map(leaves, node.values() if isinstance(node, dict) else node))

    guides = {path.relative_to(ROOT).as_posix().removeprefix("docs/") for path in pages()}
    assert guides <= leaves(read("mkdocs.yml")["nav"])


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_commands_of_the_makefile_are_described() -> None:
    """Every target in CONTRIBUTING.md and in the list at the top of the Makefile exists."""
    makefile = text_of(ROOT / "Makefile")
    listed = re.findall(r"^# make ([\w-]+)", makefile, re.MULTILINE)
    named = re.findall(r"^make ([\w-]+)", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    for target in {*listed, *named}:
        command = ["make", "--dry-run", "--silent", target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout, (target, done.stderr)
    assert set(named) <= set(listed)
