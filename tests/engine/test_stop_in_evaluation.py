"""A signal or a kill during an evaluation loses nothing: it is abandoned between two batches, and made up for."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tiny_training import EvaluatedTrainer, TinyTrainer, start, tiny_config, weights
from torch import nn

from mask2former.engine.hooks import TrainingInterrupted

KEYS = ("TEST.EVAL_PERIOD", "3", "SOLVER.MAX_ITER", "9", "LOGGERS", "()")
TIMES = ("time", "data_time", "eta_seconds", "images_per_second")


class Evaluating(EvaluatedTrainer):
    """Evaluates batch by batch; `act` is called with (evaluation, batch), both counted from 0."""

    evaluations = 0
    batches: list[tuple[int, int]] = []

    @staticmethod
    def act(evaluation: int, batch: int) -> None: ...

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        class Batches:
            def __len__(self) -> int:
                return 3

            def __iter__(self) -> Iterator[Any]:
                cls.evaluations += 1
                for number in range(3):
                    cls.batches.append((cls.evaluations - 1, number))
                    cls.act(cls.evaluations - 1, number)
                    x = torch.ones(4) * number
                    yield [{"x": x, "y": x.sum()}]

        return Batches()


def trainer_class(at: tuple[int, int] | None = None, error: BaseException | None = None) -> type[Evaluating]:
    """A class with counters of its own, in which a signal or an error comes at an evaluation and batch."""

    class Counting(Evaluating):
        batches = []

        @staticmethod
        def act(evaluation: int, batch: int) -> None:
            if (evaluation, batch) == at:
                if error is not None:
                    raise error
                os.kill(os.getpid(), signal.SIGTERM)

    return Counting


def rows(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.json").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("straight")
    trainer = start(tiny_config(directory, *KEYS), trainer_class=trainer_class())
    trainer.train()
    return directory, weights(trainer)


def assert_equal_to(straight: Any, directory: Path, trainer: EvaluatedTrainer) -> None:
    assert rows(directory) == rows(straight[0])
    for name, value in straight[1].items():
        assert torch.equal(value, weights(trainer)[name]), name
    for name in ("model_best.json", "model_best.safetensors", "model_final.safetensors"):
        assert (directory / name).read_bytes() == (straight[0] / name).read_bytes(), name
    assert sorted(p.name for p in directory.glob("*.pth")) == sorted(p.name for p in straight[0].glob("*.pth"))


@pytest.mark.parametrize("at", [(0, 1), (1, 0), (2, 1)], ids=["first", "second", "final"])
@pytest.mark.parametrize("period", ["3", "100"], ids=["saved before", "saved for it"])
def test_signal_in_an_evaluation(tmp_path: Path, straight: Any, at: tuple[int, int], period: str) -> None:
    kind = trainer_class(at)
    cfg = tiny_config(tmp_path, *KEYS, "SOLVER.CHECKPOINT_PERIOD", period)
    with pytest.raises(TrainingInterrupted) as stop:
        start(cfg, trainer_class=kind).train()
    assert stop.value.code == 128 + signal.SIGTERM
    assert kind.batches[-1] == at  # the batch in which it came is the last
    assert [row["iteration"] for row in rows(tmp_path) if "segm/AP" in row] == [2, 5, 8][: at[0]]
    done = 3 * (at[0] + 1)
    assert (tmp_path / "last_checkpoint").read_text() == (
        "model_final.pth" if done == 9 else f"model_{done - 1:07d}.pth"
    )
    resumed = start(tiny_config(tmp_path, *KEYS), resume=True, trainer_class=trainer_class())
    assert resumed.start_iter == done
    resumed.train()
    for name in ("model_0000002.pth", "model_0000005.pth"):
        (tmp_path / name).touch()  # not there where the period was another
    assert_equal_to(straight, tmp_path, resumed)


class Killed(BaseException):
    """As a kill: nothing after it runs, but for what cleans up."""


@pytest.mark.parametrize("early_stop", ["0", "5"])
@pytest.mark.parametrize("at", [(0, 2), (2, 0)], ids=["periodic", "final"])
def test_a_killed_evaluation_comes_after_the_resume(
    tmp_path: Path, straight: Any, at: tuple[int, int], early_stop: str
) -> None:
    cfg = tiny_config(tmp_path, *KEYS, "SOLVER.EARLY_STOP_PATIENCE", early_stop)
    with pytest.raises(Killed):
        start(cfg, trainer_class=trainer_class(at, Killed())).train()
    kind = trainer_class()
    resumed = start(cfg, resume=True, trainer_class=kind)
    resumed.train()
    assert kind.batches[0] == (0, 0) and kind.evaluations == 3 - at[0]
    assert_equal_to(straight, tmp_path, resumed)


def test_a_complete_evaluation_is_not_repeated(tmp_path: Path, straight: Any) -> None:
    """Killed in the second one, resumed from the checkpoint before the first, whose row exists."""
    cfg = tiny_config(tmp_path, *KEYS)
    with pytest.raises(Killed):
        start(cfg, trainer_class=trainer_class((1, 0), Killed())).train()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    kind = trainer_class()
    resumed = start(cfg, resume=True, trainer_class=kind)
    resumed.train()
    assert kind.evaluations == 2
    assert_equal_to(straight, tmp_path, resumed)


def test_signal_before_the_first_iteration(tmp_path: Path, straight: Any, caplog: pytest.LogCaptureFixture) -> None:
    cfg = tiny_config(tmp_path, *KEYS, "TEST.EVAL_AT_START", "True")
    with caplog.at_level("INFO"), pytest.raises(TrainingInterrupted):
        start(cfg, trainer_class=trainer_class((0, 1))).train()
    assert "after 0 iterations; there is nothing to resume from" in caplog.text
    assert not list(tmp_path.glob("*.pth")) and not (tmp_path / "baseline.json").exists()
    resumed = start(tiny_config(tmp_path, *KEYS), resume=True, trainer_class=trainer_class())
    resumed.train()
    assert rows(tmp_path) == rows(straight[0])


def test_final_weights_that_a_kill_prevented_are_written(tmp_path: Path, straight: Any) -> None:
    start(tiny_config(tmp_path, *KEYS), trainer_class=trainer_class()).train()
    (tmp_path / "model_final.safetensors").unlink()
    resumed = start(tiny_config(tmp_path, *KEYS), resume=True, trainer_class=trainer_class())
    resumed.train()
    assert_equal_to(straight, tmp_path, resumed)


def test_losses_between_two_rows_survive_a_stop(tmp_path: Path) -> None:
    """The row of a resumed training is the mean of all its iterations, not only of those after the resume."""

    class Slow(TinyTrainer):
        log_period = 4

    keys = ("SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "3")
    start(tiny_config(tmp_path / "a", *keys), trainer_class=Slow).train()
    start(tiny_config(tmp_path / "b", *keys), trainer_class=Slow).train()
    (tmp_path / "b/last_checkpoint").write_text("model_0000002.pth")
    start(tiny_config(tmp_path / "b", *keys), resume=True, trainer_class=Slow).train()
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


@pytest.mark.parametrize("early_stop", ["0", "5"])
def test_signal_in_the_final_evaluation_with_augmentation(tmp_path: Path, straight: Any, early_stop: str) -> None:
    """It comes after the last iteration and the other final evaluation, and the training can still be resumed."""

    class Augmented(Evaluating):
        @classmethod
        def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Any:
            return {f"{task}_TTA": values for task, values in cls.test(cfg, model).items()}

    class Stopped(Augmented):
        batches = []

        @staticmethod
        def act(evaluation: int, batch: int) -> None:
            if (evaluation, batch) == (3, 1):
                os.kill(os.getpid(), signal.SIGTERM)

    cfg = tiny_config(tmp_path, *KEYS, "TEST.AUG.ENABLED", "True", "SOLVER.EARLY_STOP_PATIENCE", early_stop)
    with pytest.raises(TrainingInterrupted):
        start(cfg, trainer_class=Stopped).train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    resumed = start(cfg, resume=True, trainer_class=Augmented)
    assert resumed.start_iter == 9
    resumed.train()
    without = [{k: v for k, v in row.items() if "TTA" not in k} for row in rows(tmp_path) if "segm_TTA/AP" not in row]
    assert without == rows(straight[0])
    assert rows(tmp_path)[-1]["segm_TTA/AP"] == rows(straight[0])[-1]["segm/AP"]
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == sorted(p.name for p in straight[0].glob("*.pth"))


def test_results_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    class Named(TinyTrainer):
        @classmethod
        def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
            return {"segm": {"note": None}}

    with pytest.raises(ValueError, match=r"result 'segm/note' is None"):
        start(tiny_config(tmp_path, *KEYS), trainer_class=Named).train()
