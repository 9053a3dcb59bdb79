"""Loggers: what the services get, and that they never hold a training up. The services are stand-ins."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_training import TinyTrainer, start, tiny_config

from mask2former.config_values import LOGGERS
from mask2former.engine.loggers import _BACKENDS, Backend, BackgroundLogger, build_loggers
from mask2former.engine.loggers.background import Run
from mask2former.errors import ConfigError


class Recorder:
    """Records each call of any method, with its name; `answers` gives what some of them return."""

    def __init__(self, calls: list[tuple[str, tuple, dict]], **answers: Any) -> None:
        self.__dict__.update(answers, _calls=calls)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls.append((name, args, kwargs))
            return self.__dict__.get(f"{name}_returns")

        return call


Calls = list[tuple[str, tuple, dict]]


def named(calls: Calls, name: str) -> list[tuple[tuple, dict]]:
    return [(args, kwargs) for called, args, kwargs in calls if called == name]


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []
    run = Recorder(calls, url="https://wandb/run", dir="out/wandb/run-1/files", summary={})

    def init(**kwargs: Any) -> Any:
        calls.append(("init", (), kwargs))
        if kwargs["mode"] == "online" and sys.modules["wandb"].unreachable:
            raise OSError("no network")
        return run

    content = {"Image": lambda pixels: ("image", pixels.shape), "Settings": dict, "unreachable": False}
    fake(monkeypatch, "wandb", init=init, api=SimpleNamespace(api_key=None), run=run, **content)
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return calls


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []
    answers = {
        "get_experiment_by_name_returns": None,
        "create_experiment_returns": "3",
        "create_run_returns": SimpleNamespace(info=SimpleNamespace(run_id="run7")),
        "tracking_uri": "file:here",
    }
    fake(monkeypatch, "mlflow", MlflowClient=lambda: Recorder(calls, **answers))
    fake(monkeypatch, "mlflow.entities", Param=lambda *a: a, Metric=lambda *a: a)
    return calls


@pytest.fixture
def clearml(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []
    task = Recorder(calls, id="task9", get_logger_returns=Recorder(calls), get_output_log_web_page_returns="https://c")

    class Task:
        @staticmethod
        def init(**kwargs: Any) -> Any:
            calls.append(("init", (), kwargs))
            return task

    fake(monkeypatch, "clearml", Task=Task)
    return calls


class EvaluatingTrainer(TinyTrainer):
    """Puts an image into each evaluation."""

    @classmethod
    def test(cls, cfg: Any, model: Any, evaluators: Any = None) -> Any:
        from detectron2.utils.events import get_event_storage

        get_event_storage().put_image("preview/cells/0 (1)", torch.zeros(3, 4, 5, dtype=torch.uint8))
        return {"segm": {"AP": 12.5, "APs": float("nan")}}


def train(directory: Path, *keys: str, resume: bool = False) -> TinyTrainer:
    cfg = tiny_config(directory, "TEST.EVAL_PERIOD", "3", *keys)
    trainer = start(cfg, resume=resume, trainer_class=EvaluatingTrainer)
    trainer.train()
    return trainer


def test_names_in_config_and_code_agree() -> None:
    assert sorted(LOGGERS) == sorted([*_BACKENDS, "tensorboard"])


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clearml", None)
    with pytest.raises(ConfigError, match="LOGGERS names 'clearml'.*pip install clearml"):
        start(tiny_config(tmp_path, "LOGGERS", "['clearml']"))


def test_no_logger_at_all(tmp_path: Path) -> None:
    assert build_loggers(tiny_config(tmp_path, "LOGGERS", "[]")) == []
    trainer = train(tmp_path, "LOGGERS", "[]")
    assert trainer.storage._vis_data == [] or len(trainer.storage._vis_data) == 1  # that of the last evaluation
    assert not list(tmp_path.glob("events.out.*"))


def test_wandb(tmp_path: Path, wandb: Calls) -> None:
    directory = tmp_path / "my run"
    train(directory, "LOGGERS", "['tensorboard','wandb']", "SOLVER.MAX_ITER", "3")
    ((_, arguments),) = named(wandb, "init")
    assert arguments["mode"] == "offline" and arguments["project"] == "mask2former" and arguments["name"] == "my run"
    assert arguments["config"]["SOLVER.MAX_ITER"] == 3 and arguments["config"]["DATASETS.TEST"] == "('tiny_val',)"
    assert json.loads((directory / "loggers.json").read_text()) == {"wandb": arguments["id"]}
    rows = [args[0] for args, _ in named(wandb, "log")]
    losses = [row for row in rows if "total_loss" in row]
    assert [row["iteration"] for row in losses] == [1, 2] and losses[0]["loss_ce"] > 0
    assert not any("segm/APs" in row for row in rows)  # not a number
    images = [row for row in rows if "preview/cells/0 (1)" in row]
    assert [row["preview/cells/0 (1)"] for row in images] == [("image", (4, 5, 3))]
    assert sys.modules["wandb"].run.summary == {"final/segm/AP": 12.5}
    assert named(wandb, "finish") == [((), {"exit_code": 0})]

    train(directory, "LOGGERS", "['wandb']", resume=True)  # to six iterations
    assert named(wandb, "init")[1][1]["id"] == arguments["id"]
    train(directory, "LOGGERS", "['wandb']")  # without --resume
    assert named(wandb, "init")[2][1]["id"] != arguments["id"]


def test_an_early_stop_completes_the_run(tmp_path: Path, wandb: Calls) -> None:
    trainer = train(tmp_path, "LOGGERS", "['wandb']", "SOLVER.MAX_ITER", "12", "SOLVER.EARLY_STOP_PATIENCE", "1")
    assert trainer.stopped_early and trainer.iter == 5  # AP is always the same
    assert named(wandb, "finish") == [((), {"exit_code": 0})]


def test_wandb_without_network_is_kept_on_disk(
    tmp_path: Path, wandb: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    sys.modules["wandb"].unreachable = True  # type: ignore[attr-defined]
    train(tmp_path, "LOGGERS", "['wandb']")
    assert [kwargs["mode"] for _, kwargs in named(wandb, "init")] == ["online", "offline"]
    assert "W&B cannot be reached" in caplog.text and named(wandb, "finish")


def test_mlflow(tmp_path: Path, mlflow: Calls) -> None:
    directory = tmp_path / "run"
    train(directory, "LOGGERS", "['mlflow']", "SOLVER.MAX_ITER", "3")
    assert named(mlflow, "create_run") == [(("3",), {"run_name": "run"})]
    batches = [kwargs for _, kwargs in named(mlflow, "log_batch")]
    params = dict(row for batch in batches for row in batch.get("params", ()))
    assert params["SOLVER.MAX_ITER"] == "3" and all(len(batch.get("params", ())) <= 100 for batch in batches)
    metrics = [(row[0], row[1], row[3]) for batch in batches for row in batch.get("metrics", ())]
    assert ("segm/AP", 12.5, 3) in metrics or ("segm/AP", 12.5, 2) in metrics
    assert named(mlflow, "log_image")[0][1]["artifact_file"].startswith("preview/cells/0 _1_/000000")
    (text,) = [args for args, _ in named(mlflow, "log_text")]
    assert text[0] == "run7" and "MAX_ITER: 3" in text[1]
    assert named(mlflow, "set_tag") == [(("run7", "final.segm/AP", "12.5000"), {})]
    assert named(mlflow, "set_terminated") == [(("run7", "FINISHED"), {})]
    train(directory, "LOGGERS", "['mlflow']", resume=True)
    assert len(named(mlflow, "create_run")) == 1
    assert named(mlflow, "update_run") == [(("run7",), {"status": "RUNNING"})]


def test_clearml(tmp_path: Path, clearml: Calls) -> None:
    train(tmp_path, "LOGGERS", "['clearml']", "SOLVER.MAX_ITER", "3")
    ((_, arguments),) = named(clearml, "init")
    assert arguments["continue_last_task"] is False and arguments["task_name"] == tmp_path.name
    assert named(clearml, "set_parameters")[0][0][0]["SOLVER.MAX_ITER"] == 3
    ((_, config),) = named(clearml, "set_configuration_object")
    assert "MAX_ITER: 3" in config["config_text"]
    scalars = [args for args, _ in named(clearml, "report_scalar")]
    assert ("segm", "AP", 12.5) in [args[:3] for args in scalars]
    assert "total_loss" in [args[0] for args in scalars]
    assert named(clearml, "report_image")[0][1]["image"].shape == (4, 5, 3)
    assert named(clearml, "report_single_value") == [(("segm/AP", 12.5), {})] and named(clearml, "close")
    train(tmp_path, "LOGGERS", "['clearml']", resume=True)
    assert named(clearml, "init")[1][1]["continue_last_task"] == "task9"


class Service(Backend):
    """Fails or blocks where it is told to."""

    fail_start = fail = False
    block: threading.Event | None = None
    got: list[int] = []

    def start(self, run: Run) -> str:
        if self.fail_start:
            raise OSError("refused")
        return "1"

    def scalars(self, iteration: int, values: Any) -> None:
        if self.block is not None:
            self.block.wait(20)
        if self.fail:
            raise OSError("lost")
        self.got.append(iteration)

    def image(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        raise NotImplementedError

    def finish(self, final: Any, completed: bool) -> None:
        self.got.append(-1)


def log(directory: Path, service: type[Service], rows: int, last_seconds: float = 20.0) -> BackgroundLogger:
    logger = BackgroundLogger("service", service, tiny_config(directory), directory, last_seconds)
    with EventStorage() as storage:
        for i in range(rows):
            storage.iter = i
            storage.put_scalar("loss", 1.0)
            logger.write()
    logger.close()
    return logger


@pytest.mark.parametrize("what", ["fail_start", "fail"])
def test_a_failing_service_is_switched_off_with_one_message(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = type("Failing", (Service,), {what: True, "got": []})
    log(tmp_path, service, 30)
    assert service.got == []
    off = [r.getMessage() for r in caplog.records if "is switched off; the training goes on" in r.getMessage()]
    assert len(off) == 1 and "OSError" in off[0] and "LOGGERS service" in off[0]


def test_a_hanging_service_does_not_hold_the_training_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    block = threading.Event()
    service = type("Hanging", (Service,), {"block": block, "got": []})
    begin = time.monotonic()
    log(tmp_path, service, 1200, last_seconds=0.2)  # more rows than may wait
    assert time.monotonic() - begin < 10
    assert "did not take everything" in caplog.text
    block.set()


def test_everything_arrives_in_order(tmp_path: Path) -> None:
    service = type("Good", (Service,), {"got": []})
    log(tmp_path, service, 40)
    assert service.got == [*range(40), -1]


def test_a_damaged_list_of_runs_starts_new_ones(tmp_path: Path, wandb: Calls, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, "LOGGERS", "['wandb']", "SOLVER.MAX_ITER", "3")
    (tmp_path / "loggers.json").write_text("{")
    train(tmp_path, "LOGGERS", "['wandb']", resume=True)
    assert "loggers.json: new runs are started" in caplog.text
    assert json.loads((tmp_path / "loggers.json").read_text()).keys() == {"wandb"}
