from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mask2former.config import load_config
from mask2former.engine import TrainingInterrupted, argument_parser, launch, setup, training_setup
from mask2former.engine.rank_group import Place, announce_failure, torchrun_place
from mask2former.errors import InUseError
from mask2former.utils import locks

module = sys.modules["mask2former.engine.launch"]  # the name in the package is the function

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}


def parse(*arguments: str) -> argparse.Namespace:
    return argument_parser().parse_args(arguments)


def test_torchrun_variables() -> None:
    assert torchrun_place(TORCHRUN) == Place(
        rank=5, world_size=8, local_rank=1, local_world_size=4, host="host", port=29500
    )
    assert torchrun_place({}) is None
    assert torchrun_place({"RANK": "0", "WORLD_SIZE": "1"}) is None  # some other launcher's


@pytest.mark.parametrize("name", ["WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_incomplete_torchrun_variables(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        torchrun_place({k: v for k, v in TORCHRUN.items() if k != name})


@pytest.mark.parametrize(
    "change", [{"RANK": "8"}, {"LOCAL_RANK": "4"}, {"RANK": "x"}, {"LOCAL_WORLD_SIZE": "9"}, {"MASTER_PORT": "y"}]
)
def test_wrong_torchrun_variables(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="torchrun"):
        torchrun_place({**TORCHRUN, **change})


def test_all_arguments_of_the_reference() -> None:
    args = parse(
        *("--config-file", "a.yaml", "--resume", "--eval-only", "--num-gpus", "2", "--num-machines", "3"),
        *("--machine-rank", "1", "--dist-url", "tcp://host:1", "SOLVER.BASE_LR", "0.1"),
    )
    assert (args.config_file, args.resume, args.eval_only) == ("a.yaml", True, True)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (2, 3, 1)
    assert args.dist_url == "tcp://host:1"
    assert args.opts == ["SOLVER.BASE_LR", "0.1"]
    assert not args.debug


def failing(args: argparse.Namespace) -> None:
    raise FileNotFoundError("no file x.json, set DATASETS.COCO_JSON")


def broken(args: argparse.Namespace) -> None:
    raise KeyError("our own mistake")


def stopped(args: argparse.Namespace) -> None:
    raise SystemExit(143)


def fine(args: argparse.Namespace) -> None:
    pass


def test_user_errors_are_a_message_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(failing, parse()) == 2
    error = capsys.readouterr().err
    assert "Error: no file x.json, set DATASETS.COCO_JSON" in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        launch(failing, parse("--debug"))


def test_debug_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_DEBUG", "1")
    assert parse().debug
    monkeypatch.setenv("MASK2FORMER_DEBUG", "0")
    assert not parse().debug


def test_faults_of_the_program_name_the_file_with_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(broken, parse()) == 1
    told = capsys.readouterr().err
    assert "fault of the program" in told and "KeyError: our own mistake" in told and told.strip().count("\n") == 0
    saved = re.search(r"The traceback is in (\S+)\.", told)
    assert saved is not None and "in broken" in Path(saved[1]).read_text()
    Path(saved[1]).unlink()
    with pytest.raises(KeyError):
        launch(broken, parse("--debug"))


def test_interrupt_before_the_training_is_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(ctrl_c, parse()) == 130
    assert "interrupted" in capsys.readouterr().err


def test_exit_status() -> None:
    assert launch(fine, parse("--num-gpus", "0")) == 0
    assert launch(stopped, parse()) == 143


def test_sys_exit_with_a_text_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(lambda args: sys.exit("no such mode"), parse()) == 1
    assert capsys.readouterr().err == "no such mode\n"


@pytest.mark.parametrize("main", [failing, broken])
def test_log_file_tells_why_the_training_ended(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("mask2former")
    with (tmp_path / "log.txt").open("w") as file:
        handler = logging.StreamHandler(file)
        log.addHandler(handler)
        try:
            launch(main, parse())
        finally:
            log.removeHandler(handler)
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback" in text and "Error" in text
    told = capsys.readouterr().err
    assert "Traceback" not in told and (main is failing or f"The traceback is in {tmp_path / 'log.txt'}." in told)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num-gpus", "-1"),
        ("--num-machines", "2", "--machine-rank", "2"),
        ("--num-gpus", "0", "--num-machines", "2"),
        ("--num-gpus", "1", "--num-machines", "2"),  # needs --dist-url
        ("--num-gpus", "1", "--num-machines", "2", "--dist-url", "host:1"),
        ("--num-gpus", "1", "--dist-url", "tcp://host:1"),  # has nothing to do
        ("--num-gpus", "0", "--dist-url", "tcp://host:1"),
    ],
)
def test_impossible_process_counts(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(fine, parse(*arguments)) == 2
    assert "--num-" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--num-gpus", "2"), "--num-gpus 2 has no effect with torchrun, which started 4 ranks"),
        (("--num-machines", "2"), "--num-machines 2 has no effect with torchrun"),
        (("--machine-rank", "1"), "--machine-rank 1 has no effect"),
        (("--dist-url", "tcp://host:1"), "--dist-url tcp://host:1 has no effect"),
    ],
)
def test_arguments_that_torchrun_decides(
    arguments: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_run_rank", lambda *_: 0)
    assert launch(fine, parse(*arguments)) == 2
    assert told in capsys.readouterr().err
    for fitting in ((), ("--num-gpus", "4"), ("--num-gpus", "0")):
        assert launch(fine, parse(*fitting)) == 0


class FakeGroup:
    """Says what was asked of a rank's group."""

    said: list[Any]

    def __init__(self, place: Place) -> None:
        type(self).said = []

    def use_device(self) -> None:
        pass

    def leave(self) -> None:
        self.said.append("left")

    def fail(self, status: int, message: str) -> None:
        self.said.append((status, message))
        raise SystemExit(status)


def interrupted(args: argparse.Namespace) -> None:
    raise TrainingInterrupted(15)


def ctrl_c(args: argparse.Namespace) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("main", "status", "message"),
    [
        (failing, 2, r"\nError: no file x\.json, set DATASETS\.COCO_JSON\n\(--debug .*\)\n"),
        (
            broken,
            1,
            r"\nError: this is a fault of the program, .* KeyError: our own mistake\. The trace.*\n",
        ),
        (stopped, 143, ""),
        (ctrl_c, 130, ""),
    ],
)
def test_a_rank_that_fails_does_not_leave_in_order(
    main: Callable[..., None], status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving is a collective operation: after an error on one rank it would wait for the timeout."""
    monkeypatch.setattr(module, "torchrun_place", lambda: Place(0, 2, 0, 2, "host", 1))
    monkeypatch.setattr(module, "RankGroup", FakeGroup)
    with pytest.raises(SystemExit):
        launch(main, parse())
    [(told_status, told)] = FakeGroup.said
    assert told_status == status
    assert re.fullmatch(message, told), told


@pytest.mark.parametrize(("main", "status"), [(fine, 0), (interrupted, 143)])
def test_ranks_that_end_together_leave_in_order(
    main: Callable[..., None], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "torchrun_place", lambda: Place(0, 2, 0, 2, "host", 1))
    monkeypatch.setattr(module, "RankGroup", FakeGroup)
    assert launch(main, parse()) == status
    assert FakeGroup.said == ["left"]


def test_kept_workers_do_not_keep_a_process_that_fails() -> None:
    """The traceback holds the iterator, which would end them otherwise."""
    code = (
        "from torch.utils.data import DataLoader; from mask2former.engine.stop_signals import keep_workers\n"
        "def main():\n"
        "    batches = iter(keep_workers(DataLoader(range(1000), num_workers=1)))\n"
        "    raise KeyError(int(next(batches)))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("KeyError: 0\n"), done.stderr


class FakeRank:
    """A child process that has ended."""

    pid = 4242

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode
        self.sentinel, writer = os.pipe()
        os.close(writer)  # the end of the file is what a waiting parent sees

    def join(self) -> None:
        os.close(self.sentinel)


@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 3), (-9, 137), (-15, 143)])
def test_status_of_child_processes(code: int, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    store = dist.HashStore()
    assert module._wait_for([FakeRank(0), FakeRank(code)], store) == status  # type: ignore[list-item]
    assert store.check(["failure"]) == bool(status)  # a rank that was killed could not tell it
    if status:
        assert announce_failure(store, 0, 99) == (-1, status)
    told = {-9: "ended by SIGKILL (the system does so when memory runs out)", -15: "ended by SIGTERM."}.get(code, "")
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=url):
            module._open_store("127.0.0.1", other.getsockname()[1], serve=True)


def test_meeting_place() -> None:
    assert module._meeting_place(parse()) == ("127.0.0.1", 0)  # any free port
    assert module._meeting_place(parse("--num-machines", "2", "--dist-url", "tcp://a.b:29")) == ("a.b", 29)


def test_setup_names_a_missing_config_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        setup(parse("--config-file", "nothing.yaml"))


def test_setup_names_an_unknown_key() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR"):
        setup(parse("SOLVER.BASE_LRR", "0.1"))


def test_setup_refuses_detectron2s_default_model() -> None:
    with pytest.raises(ValueError, match="META_ARCHITECTURE"):
        setup(parse("--eval-only"))


@pytest.mark.parametrize("gpus", ["0", "1"])
def test_setup_falls_back_to_cpu(gpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if gpus == "1":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training_setup, "validate_config", lambda cfg, training, **_: None)
    records: list[str] = []
    monkeypatch.setattr(training_setup.logger, "info", lambda text, *values: records.append(text % values))
    cfg = setup(parse("--num-gpus", gpus, "OUTPUT_DIR", str(tmp_path), "SEED", "3"))
    assert cfg.MODEL.DEVICE == "cpu"
    assert cfg.is_frozen()
    assert any("MODEL.DEVICE is set from cuda to cpu" in line for line in records)
    assert "SEED: 3" in (tmp_path / "config.yaml").read_text()
    assert (tmp_path / "log.txt").is_file()
    logging.getLogger("mask2former").handlers.clear()


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [((), True), (("--eval-only",), True), (("--num-gpus", "0"), False), (("MODEL.DEVICE", "cpu"), False)],
)
def test_setup_tells_that_a_config_file_leaves_a_gpu_idle(
    arguments: tuple[str, ...], warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_setup, "validate_config", lambda cfg, training, **_: None)
    monkeypatch.setattr(training_setup, "config_warnings", lambda cfg: [])
    monkeypatch.setattr(training_setup, "collect_env_info", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training_setup, "seed_all_rng", lambda seed: None)
    file = tmp_path / "packed.yaml"
    file.write_text(f"MODEL: {{DEVICE: cpu}}\nOUTPUT_DIR: {tmp_path / 'out'}\n")
    records: list[str] = []
    monkeypatch.setattr(training_setup.logger, "warning", lambda text, *values: records.append(text % values))
    cfg = setup(parse("--config-file", str(file), *arguments))
    assert cfg.MODEL.DEVICE == "cpu"  # the command of the reference does what the config says
    assert [f"MODEL.DEVICE is cpu in {file}" in line for line in records] == [True] * warned
    logging.getLogger("mask2former").handlers.clear()


@pytest.mark.parametrize("trained", [True, False])
def test_an_evaluation_leaves_the_config_of_a_training(
    trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_setup, "validate_config", lambda cfg, **options: None)
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    if trained:
        (tmp_path / "model_final.pth").write_bytes(b"")
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
    setup(parse("--eval-only", "--num-gpus", "0", "OUTPUT_DIR", str(tmp_path), "SEED", "3", "MODEL.WEIGHTS", "x.pth"))
    training_setup.accept_config(str(tmp_path))
    assert ("SEED: 3" in (tmp_path / "config.yaml").read_text()) is not trained
    logging.getLogger("mask2former").handlers.clear()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
def test_a_second_training_in_one_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written there."""
    (tmp_path / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid()}))

    def locked(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr(locks.fcntl, "lockf", locked)
    monkeypatch.setattr(training_setup, "validate_config", lambda cfg, training, **_: None)
    args = parse("--num-gpus", "0", "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(InUseError, match=f"{tmp_path} is in use by process {os.getppid()} on"):
        setup(args)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.parametrize("name", ["file", "file/out", "x" * 300])
def test_an_output_directory_that_cannot_be_written_is_told_first(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_setup, "validate_config", lambda cfg, training, **_: None)
    (tmp_path / "file").write_text("")
    args = parse("--num-gpus", "0", "OUTPUT_DIR", str(tmp_path / name))
    with pytest.raises(OSError, match=r"choose another OUTPUT_DIR: '") as told:
        setup(args)
    assert name in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("device", "one"), [("cuda", True), ("cpu", False)])
def test_on_a_gpu_the_cores_are_left_to_the_data_workers(
    monkeypatch: pytest.MonkeyPatch, device: str, one: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(training_setup, "select_device", torch.device)
    monkeypatch.setattr(training_setup, "use_one_thread", lambda: calls.append(1))
    training_setup.prepare_device(load_config("", ["MODEL.DEVICE", device]))
    assert bool(calls) == one
