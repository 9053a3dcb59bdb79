"""The Space: its header, its requirements, and what app.py starts."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import mask2former.cli
from mask2former import zoo
from mask2former.cli import serve
from mask2former.cli.parser import CommandParser

SPACE = Path(__file__).parents[2] / "spaces"
ROOT = SPACE.parent
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def versions_of_the_project() -> dict[str, str]:
    text = (ROOT / "mask2former/installation/constraints.txt").read_text("utf-8")
    return dict(re.findall(r"^([\w-]+)==([^;\s]+)$", text, re.MULTILINE))


def test_the_header_is_one_that_hugging_face_reads() -> None:
    _, header, body = (SPACE / "README.md").read_text("utf-8").split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["sdk"] == "gradio" and fields["sdk_version"] == versions_of_the_project()["gradio"]
    assert (SPACE / fields["app_file"]).is_file()
    assert {fields["colorFrom"], fields["colorTo"]} <= COLORS
    assert len(fields["short_description"]) <= 60 and fields["title"] and fields["emoji"]
    assert fields["license"] == "mit" and isinstance(fields["python_version"], str)
    assert f"Python :: {fields['python_version']}" in (ROOT / "pyproject.toml").read_text("utf-8")
    assert body.startswith("\n# ")


def test_requirements_are_versions_of_the_project_and_this_package_with_its_web_app() -> None:
    lines = (SPACE / "requirements.txt").read_text("utf-8").splitlines()
    requirements = {r.name: r for r in (Requirement(line) for line in lines if not line.startswith(("#", "-")))}
    tested = versions_of_the_project()
    for name in ("torch", "torchvision"):
        assert str(requirements[name].specifier) == f"=={tested[name]}"
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    package = requirements["mask2former"]
    address = re.search(r'^Repository = "(.*)"', project, re.MULTILINE)
    assert address is not None and package.url == f"git+{address[1]}.git"
    assert "serve" in package.extras
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in package.extras)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the command lines that are run instead of `main`, whose status is 3."""
    commands: list[Any] = []

    def main(arguments: list[str]) -> int:
        commands.append(arguments)
        return 3

    monkeypatch.setattr(mask2former.cli, "main", main)
    monkeypatch.delenv("MASK2FORMER_MODELS", raising=False)
    return commands


def run_app() -> None:
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert stop.value.code == 3


def test_the_app_serves_where_a_space_expects_it(started: list[Any]) -> None:
    run_app()
    (command,) = started
    assert command[:5] == ["serve", "--host", "0.0.0.0", "--port", "7860"]
    parser = CommandParser("mask2former serve")
    serve.add_arguments(parser)
    assert parser.parse_args(command[1:]).embed_in == ["https://huggingface.co"]  # which shows Spaces in a frame


def test_weights_are_fetched_first_and_a_failure_is_told(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolve(name: str) -> Path:
        assert not started
        if name == "coco-panoptic-r50":
            raise FileNotFoundError("cannot download it")
        return Path("weights.pkl")

    monkeypatch.setattr(zoo, "resolve_weights", resolve)
    monkeypatch.setenv("MASK2FORMER_MODELS", "nuclei, coco-panoptic-r50,")
    run_app()
    printed = capsys.readouterr()
    assert printed.out == "nuclei: weights.pkl\n"
    assert printed.err == "coco-panoptic-r50 is left out: cannot download it\n"
    assert len(started) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Spaces run on Linux")
def test_without_detectron2_the_app_continues_in_an_environment_that_has_it(tmp_path: Path) -> None:
    """The environment is made for real; `setup`, which would download, is a module that leaves a detectron2 there."""
    base = tmp_path / "base"  # a Python into which pip has installed requirements.txt
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base], check=True)
    packages = next(base.glob("lib/python*/site-packages"))
    (packages / "mask2former").mkdir()
    (packages / "mask2former/__init__.py").touch()
    (packages / "mask2former/zoo.py").write_text("def resolve_weights(name): ...\n")
    (packages / "mask2former/cli.py").write_text("def main(arguments):\n    print(arguments)\n    return 0\n")
    setup = """
        import pathlib, sys, sysconfig
        assert sys.argv[1:] == ["setup", "--torch", "keep"], sys.argv
        pathlib.Path(sysconfig.get_path("purelib"), "detectron2.py").touch()
    """
    (packages / "mask2former/__main__.py").write_text(textwrap.dedent(setup))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    command = [base / "bin/python", SPACE / "app.py"]
    for _ in range(2):  # the second start finds the environment
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("['serve', '--host', '0.0.0.0', '--port', '7860', ")
    assert (tmp_path / ".cache/mask2former-space/pyvenv.cfg").is_file()
