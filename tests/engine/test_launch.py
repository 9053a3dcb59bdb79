from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import pytest
import torch

from mask2former.engine import argument_parser, launch, setup
from mask2former.engine.launch import TorchrunPlace, torchrun_place

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
    assert torchrun_place(TORCHRUN) == TorchrunPlace(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert torchrun_place({}) is None
    assert torchrun_place({"RANK": "0", "WORLD_SIZE": "1"}) is None  # some other launcher's


@pytest.mark.parametrize("name", ["WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_incomplete_torchrun_variables(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        torchrun_place({k: v for k, v in TORCHRUN.items() if k != name})


@pytest.mark.parametrize(
    "change", [{"RANK": "8"}, {"LOCAL_RANK": "4"}, {"RANK": "x"}, {"LOCAL_WORLD_SIZE": "9"}]
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


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(KeyError):
        launch(broken, parse())


def test_exit_status() -> None:
    assert launch(fine, parse("--num-gpus", "0")) == 0
    assert launch(stopped, parse()) == 143


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num-gpus", "-1"),
        ("--num-machines", "2", "--machine-rank", "2"),
        ("--num-gpus", "0", "--num-machines", "2"),
    ],
)
def test_impossible_process_counts(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(fine, parse(*arguments)) == 2
    assert "--num-" in capsys.readouterr().err


@pytest.mark.parametrize("main", [failing, stopped])
def test_status_of_child_processes(main: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of detectron2's launcher, on CPU (or two GPUs)."""
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        pytest.skip("needs no GPU or two")
    module = sys.modules["mask2former.engine.launch"]  # the name in the package is the function

    calls = []

    def in_process(guarded, num_gpus, **keywords):  # type: ignore[no-untyped-def]
        from torch.multiprocessing import ProcessExitedException

        calls.append(num_gpus)
        try:
            guarded(*keywords["args"])
        except SystemExit as stop:
            raise ProcessExitedException("", error_index=0, error_pid=1, exit_code=stop.code) from None

    monkeypatch.setattr(module, "detectron2_launch", in_process)
    assert launch(main, parse("--num-gpus", "2")) == (2 if main is failing else 143)  # type: ignore[arg-type]
    assert calls == [2]


def test_only_a_process_that_succeeded_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the group is a collective operation: after an error on one rank it would wait for the timeout."""
    module = sys.modules["mask2former.engine.launch"]  # the name in the package is the function

    left: list[bool] = []
    monkeypatch.setattr(module, "torchrun_place", lambda: module.TorchrunPlace(0, 2, 0, 2))
    monkeypatch.setattr(module, "_join", lambda place: None)
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "destroy_process_group", lambda: left.append(True))
    monkeypatch.setattr(module, "_tell", lambda error: None)
    assert launch(failing, parse()) == 2
    with pytest.raises(KeyError):
        launch(broken, parse())
    assert not left
    assert launch(fine, parse()) == 0
    assert left == [True]


@pytest.mark.parametrize(("code", "status"), [(3, 3), (-9, 137), (-15, 143)])
def test_status_of_a_killed_child(code: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.multiprocessing import ProcessExitedException

    module = sys.modules["mask2former.engine.launch"]  # the name in the package is the function

    def killed(*arguments: object, **keywords: object) -> None:
        raise ProcessExitedException("", error_index=0, error_pid=1, exit_code=code)

    monkeypatch.setattr(module, "detectron2_launch", killed)
    monkeypatch.setattr(module, "_check_gpus", lambda args: None)
    assert launch(fine, parse("--num-gpus", "2")) == status


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
    module = sys.modules["mask2former.engine.launch"]  # the name in the package is the function

    if gpus == "1":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "validate_config", lambda cfg, training: None)
    records: list[str] = []
    monkeypatch.setattr(module.logger, "info", lambda text, *values: records.append(text % values))
    cfg = setup(parse("--num-gpus", gpus, "OUTPUT_DIR", str(tmp_path), "SEED", "3"))
    assert cfg.MODEL.DEVICE == "cpu"
    assert cfg.is_frozen()
    assert any("MODEL.DEVICE is set from cuda to cpu" in line for line in records)
    assert "SEED: 3" in (tmp_path / "config.yaml").read_text()
    assert (tmp_path / "log.txt").is_file()
    logging.getLogger("mask2former").handlers.clear()
