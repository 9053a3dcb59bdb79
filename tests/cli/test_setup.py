"""`mask2former setup`: arguments, messages and exit statuses."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mask2former.cli import setup
from mask2former.installation import command
from mask2former.installation.messages import InstallError


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    setup.add_arguments(parser)
    return setup.run(parser.parse_args(arguments))


def test_arguments_are_those_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(setup, "install", lambda args, project: seen.append(args))
    assert run() == 0
    assert run("--extras", "video", "--torch", "keep", "--ops", "cuda", "--offline", "--dry-run", "--wheels", "w") == 0
    defaults, given = map(vars, seen)
    assert defaults == {
        "extras": [],
        "torch": "auto",
        "ops": "auto",
        "offline": False,
        "wheels": None,
        "dry_run": False,
    }
    assert (given["extras"], given["torch"], given["ops"], given["wheels"]) == (["video"], "keep", "cuda", Path("w"))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InstallError("torch 2.5 is installed. Do this"), 2, "error: not installed. torch 2.5 is installed. Do this\n"),
        (KeyboardInterrupt(), 130, "error: stopped. The same command continues; finished downloads are kept.\n"),
    ],
)
def test_failures(
    error: BaseException,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(setup, "install", fail)
    assert run() == status
    assert capsys.readouterr().err == text


def test_missing_directory_of_wheels(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--wheels", "nowhere") == 2
    assert capsys.readouterr().err == "error: not installed. --wheels: there is no directory nowhere\n"


def test_description_shows_every_choice_of_the_op() -> None:
    assert all(f"--{name}" in setup.DESCRIPTION for name in ("dry-run", "extras", "torch", "ops", "wheels"))
    assert command.OPS_CHOICES[0] == "auto"
