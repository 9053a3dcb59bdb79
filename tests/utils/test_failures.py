from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.utils.failures import add_debug, run_guarded, run_program


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("a.png: too small, give b"), 2, r"error: a\.png: too small, give b \(--debug shows .*\)\n"),
        (
            OSError(28, "No space left on device", "/o"),
            2,
            r"error: /o: no space left on device \(errno 28\): free .*\n",
        ),
        (KeyboardInterrupt(), 130, r"error: interrupted\n"),
    ],
)
def test_errors_are_a_message_and_a_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_guarded(lambda: fail(error)) == status
    assert re.fullmatch(text, capsys.readouterr().err)


def test_faults_of_the_program_are_one_line_and_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: fail(TypeError("a\nb"))) == 1
    told = capsys.readouterr().err
    file = re.search(r"traceback is in (\S+)\. Please report it", told)
    assert told.count("\n") == 1 and "TypeError: a." in told and "/issues" in told and file is not None
    assert "in fail" in Path(file[1]).read_text()
    Path(file[1]).unlink()


@pytest.mark.parametrize("variable", ["", "1"])
def test_tracebacks_on_demand(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASK2FORMER_DEBUG", variable)
    assert run_guarded(lambda: fail(ValueError("x")), debug=not variable) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and told.endswith("error: x\n")


def test_scripts_take_debug_before_and_after_a_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--debug", "sub"], ["sub", "--debug"], ["sub"]):
        parser = argparse.ArgumentParser()
        parser.add_subparsers().add_parser("sub")
        assert run_program(parser, lambda args: fail(ValueError("x")), argv, mistake=7) == 7
        assert ("Traceback" in capsys.readouterr().err) == ("--debug" in argv)
    add_debug(parser)  # a second time


def test_output_that_nobody_reads_or_that_cannot_be_shown() -> None:
    code = (
        "import sys; sys.orig_argv = ['python', '-m', 'mask2former']\n"  # imports no PyTorch
        "from mask2former.utils.failures import run_guarded\n"
        "def work():\n"
        "    print('\\u4e2d\\udcff')\n"
        "    [print('x' * 80) for _ in range(10000 * int(sys.argv[1]))]\n"
        "sys.exit(run_guarded(work))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, "0"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u4e2d\\udcff\n", "")
    with subprocess.Popen([*command, "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)
