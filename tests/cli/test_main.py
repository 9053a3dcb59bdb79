"""The command line as a program: its list of commands, help, errors and exit status, with and without PyTorch."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former import __version__
from mask2former.cli import COMMANDS, Command, main
from mask2former.cli.parser import CommandParser, path
from mask2former.utils.startup import is_command_line

ROOT = Path(__file__).parents[2]


def run(*arguments: str, block: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `python -m mask2former` in a process where the import of some packages fails."""
    code = (
        "import runpy, sys\n"
        f"for name in {block!r}: sys.modules[name] = None\n"
        "sys.orig_argv = [sys.executable, '-m', 'mask2former', *sys.argv[1:]]\n"
        "runpy.run_module('mask2former', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_overview_needs_no_torch(arguments: tuple[str, ...]) -> None:
    """Nor detectron2 nor NumPy, which would take seconds to import."""
    done = run(*arguments, block=("torch", "detectron2", "numpy"))
    assert done.returncode == 0 and not done.stderr
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_missing_detectron2_is_one_line_with_the_remedy() -> None:
    done = run("predict", "a.png", block=("detectron2",))
    assert done.returncode == 2 and done.stderr.startswith("error: mask2former needs ")
    assert "mask2former setup" in done.stderr and done.stderr.count("\n") == 1


def test_version_lists_what_is_missing() -> None:
    done = run("--version", block=("detectron2", "torch", "torchvision"))
    assert done.returncode == 0 and done.stdout.splitlines()[0] == f"mask2former {__version__}"
    assert done.stdout.count("not installed: run 'mask2former setup'") == 3


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert "deformable attention on cpu: " in out and "detectron2 " in out and "not installed" not in out


@pytest.mark.parametrize(
    ("name", "hint"), [("predct", "Did you mean 'predict'?"), ("xyzzy", "'mask2former --help' lists them.")]
)
def test_unknown_command(capsys: pytest.CaptureFixture[str], name: str, hint: str) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err == f"error: there is no command '{name}'. {hint}\n"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda c: c.name)
def test_help_teaches(capsys: pytest.CaptureFixture[str], command: Command) -> None:
    """Each has examples, which are valid command lines, and says its defaults."""
    assert main([command.name, "--help"]) == 0
    assert "default" in capsys.readouterr().out
    module = importlib.import_module(command.module)
    assert command.help == module.HELP
    lines = [line.strip() for line in module.DESCRIPTION.splitlines()]
    examples = [re.split("  | #", line)[0] for line in lines if line.startswith(f"mask2former {command.name} ")]
    examples = [line for line in examples if "--help" not in line]
    assert len(examples) >= 3
    for example in examples:
        parser = CommandParser(f"mask2former {command.name}", "")
        module.add_arguments(parser)
        parser.parse_args(example.replace("'", "").split()[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "a.png", "--qqq", "0.5"], "unknown argument '--qqq'. See mask2former predict --help"),
        (["predict", "a.png", "--outptu=x"], "unknown argument '--outptu'. Did you mean '--output'?"),
        (["predict", "a.png", "--score-threshold", "50"], "must lie between 0 and 1, not 50"),
        (["predict", "a.png", "--tile", "big"], "must be auto, off or a number of pixels, not big"),
        (["predict", "a.png", "--channels", "1,x"], "--channels"),
        (["predict", "a.png", "--stretch", "9,1"], "must be percentile, minmax, or two values"),
        (["predict", "a.png", "--save-as", "coco,voc"], "choose from coco, labelme, yolo, not coco,voc"),
        (["track"], "VIDEO"),
        (["models", "coco-panoptik-r50"], "Did you mean"),
        (["convert", "file", "a.pth"], "OUT"),
        (["eval"], "give --model NAME"),
        (["benchmark", "--model", "nucleii"], "Did you mean 'nuclei'"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("mask2former.cli.models.run", stop)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "mask2former"], True),
        (["-m", "mask2former", "predict"], True),
        (["-X", "importtime", "-u", "-m", "mask2former"], True),
        (["/venv/bin/mask2former", "setup"], True),
        ([r"C:\venv\Scripts\mask2former.exe"], True),
        (["-m", "mask2former.ops"], False),
        (["-m", "pytest", "mask2former"], False),
        (["train.py", "-m", "mask2former"], False),
        (["-c", "import mask2former", "mask2former"], False),
        (["-c", "from multiprocessing.spawn import spawn_main", "--multiprocessing-fork"], False),
        ([], False),
    ],
)
def test_how_python_was_started(arguments: list[str], expected: bool) -> None:
    assert is_command_line("mask2former", arguments) is expected
    assert is_command_line("vendored.mask2former", ["-m", "vendored.mask2former"])


@pytest.mark.slow
def test_an_import_registers_everything() -> None:
    """As before: only the command line waits."""
    code = (
        "import mask2former\n"
        "from detectron2.data import DatasetCatalog\n"
        "assert 'coco_2017_val_panoptic_with_sem_seg' in DatasetCatalog\n"
        "from mask2former import *\n"
        "assert Segmenter is mask2former.Segmenter and __version__ and MaskFormer\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_paths_from_home_in_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the ~ in --output=~/out."""
    monkeypatch.setenv("HOME", "/home/someone")
    parser = CommandParser("a")
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--output")
    parser.add_argument("--target", type=path)
    args = parser.parse_args(["~/a.png", "~b", "--output=~/out", "--target=~"])
    assert args.inputs == ["/home/someone/a.png", "~b"] and args.output == "/home/someone/out"
    assert args.target == Path("/home/someone")
