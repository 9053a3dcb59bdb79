"""A resumed training with another config, and with a checkpoint that is damaged or lacks a part."""

from __future__ import annotations

import logging
import math
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from tiny_training import TinyTrainer, start, tiny_config, weights

from mask2former.checkpoint import load_weights
from mask2former.engine import training_setup
from mask2former.engine.output_directory import OutputDirectory
from mask2former.engine.training_setup import setup
from mask2former.errors import CheckpointError, ConfigError, CorruptCheckpointError

EMA = ("SOLVER.EMA_DECAY", "0.9")
OWN = "WarmupMultiStepLR"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a complete training with EMA weights; to be copied."""
    directory = tmp_path_factory.mktemp("trained")
    start(tiny_config(directory, *EMA)).train()
    return directory


@pytest.fixture
def middle(trained: Path, tmp_path: Path) -> Path:
    """A directory in which 3 of 6 iterations are finished."""
    directory = tmp_path / "middle"
    directory.mkdir()
    shutil.copy(trained / "model_0000002.pth", directory)
    (directory / "last_checkpoint").write_text("model_0000002.pth")
    return directory


def resumed(directory: Path, *overrides: str) -> TinyTrainer:
    return start(tiny_config(directory, *EMA, *overrides), resume=True)


def edited(directory: Path, change: Callable[[dict[str, Any]], Any], name: str = "model_0000002.pth") -> None:
    data = torch.load(directory / name, weights_only=True)
    change(data)
    torch.save(data, directory / name)


def rate_of(trainer: TinyTrainer, name: str = "head.weight") -> float:
    return next(group["lr"] for group in trainer.optimizer.param_groups if name in group["param_names"])


def test_without_changes_nothing_is_said(middle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        resumed(middle)
    assert "Changed" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (("SOLVER.BASE_LR", "0.001"), "SOLVER.BASE_LR: 0.01 -> 0.001"),
        (("SOLVER.MAX_ITER", "9"), "SOLVER.MAX_ITER: 6 -> 9"),
        (("SOLVER.WARMUP_ITERS", "5"), "SOLVER.WARMUP_ITERS: 2 -> 5"),
        (("SOLVER.POLY_LR_POWER", "2.0"), "SOLVER.POLY_LR_POWER: 0.9 -> 2.0"),
        (("SOLVER.BACKBONE_MULTIPLIER", "1.0"), "SOLVER.BACKBONE_MULTIPLIER: 0.1 -> 1.0"),
        (("SOLVER.LR_SCHEDULER_NAME", OWN, "SOLVER.STEPS", "(2, 5)"), "SOLVER.STEPS: (30000,) -> (2, 5)"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_new_schedule_counts(
    middle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: tuple[str, ...], change: str
) -> None:
    """The learning rate after a resume is that of a training that had the new config from the start."""
    with caplog.at_level(logging.INFO):
        trainer = resumed(middle, *overrides)
    assert f"Changed since the checkpoint: {change}; the new value counts from here." in caplog.text
    fresh = start(tiny_config(tmp_path / "fresh", *EMA, *overrides))
    for _ in range(3):
        fresh.optimizer.step()
        fresh.scheduler.step()
    for name in ("head.weight", "backbone.0.weight"):
        assert rate_of(trainer, name) == rate_of(fresh, name)
    assert trainer.scheduler.last_epoch == 3
    trainer.train()


def test_another_weight_decay_counts_also_where_it_unites_groups(
    middle: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer = resumed(middle, "SOLVER.WEIGHT_DECAY", "0.0")
    assert "SOLVER.WEIGHT_DECAY: 0.0001 -> 0.0" in caplog.text
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0}
    saved = torch.load(trained / "model_0000002.pth", weights_only=True)["trainer"]["_trainer"]["optimizer"]
    indices = {n: i for g in saved["param_groups"] for n, i in zip(g["param_names"], g["params"], strict=True)}
    assert len(saved["param_groups"]) > len(trainer.optimizer.param_groups)
    for group in trainer.optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            expected = saved["state"][indices[name]]["exp_avg"]
            assert torch.equal(trainer.optimizer.state[parameter]["exp_avg"], expected), name


def test_the_seed_goes_on_and_is_told(middle: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = resumed(middle, "SEED", "8", "MODEL.WEIGHTS", "other.pth")
    assert trainer.seed == 7
    assert "SEED: 7 -> 8; the order of the data goes on with seed 7" in caplog.text
    assert "without effect: MODEL.WEIGHTS: '' -> 'other.pth'" in caplog.text


def test_another_optimizer_is_refused(middle: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"SOLVER\.OPTIMIZER SGD: the checkpoint was trained with 'ADAMW'"):
        resumed(middle, "SOLVER.OPTIMIZER", "SGD")
    edited(middle, lambda data: data["trainer"].pop("settings"))  # as an earlier version saved it
    with pytest.raises(CheckpointError, match=r"SOLVER\.OPTIMIZER is SGD, .* state of ADAMW"):
        resumed(middle, "SOLVER.OPTIMIZER", "SGD")
    start(tiny_config(tmp_path / "sgd", "SOLVER.OPTIMIZER", "SGD")).train()
    with pytest.raises(CheckpointError, match=r"SOLVER\.OPTIMIZER ADAMW"):
        start(tiny_config(tmp_path / "sgd"), resume=True)


def test_an_own_schedule_goes_on_as_it_was_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stepped(TinyTrainer):
        @classmethod
        def build_lr_scheduler(cls, cfg: Any, optimizer: Any) -> Any:
            return torch.optim.lr_scheduler.StepLR(optimizer, 2)

    straight = start(tiny_config(tmp_path), trainer_class=Stepped)
    straight.train()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    again = start(tiny_config(tmp_path, "SOLVER.BASE_LR", "0.5"), resume=True, trainer_class=Stepped)
    assert "without effect: SOLVER.BASE_LR: 0.01 -> 0.5; this kind of schedule" in caplog.text
    assert rate_of(again) == pytest.approx(0.001)
    again.train()
    assert torch.equal(weights(again)["head.weight"], weights(straight)["head.weight"])
    edited(tmp_path, lambda data: data["trainer"]["hooks"]["ScheduleHook"].update(get_lr=3))
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    (tmp_path / "model_final.pth").unlink()
    with pytest.raises(CorruptCheckpointError, match="'get_lr', which StepLR has not"):
        start(tiny_config(tmp_path), resume=True, trainer_class=Stepped)


def test_fewer_iterations_than_are_finished(middle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in middle.iterdir()}
    opts = ["OUTPUT_DIR", str(middle), "SOLVER.MAX_ITER", "2", "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "()"]
    monkeypatch.setattr(training_setup, "validate_config", lambda *args, **kwargs: None)
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER is 2"):
        setup(Namespace(config_file="", opts=[*opts, "DATASETS.TEST", "()"], resume=True, eval_only=False, num_gpus=0))
    assert {file.name: file.read_bytes() for file in middle.iterdir()} == before
    (middle / "model_0000002.pth").rename(middle / "model_last.pth")
    (middle / "last_checkpoint").write_text("model_last.pth")
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER is 2, but 3 iterations are finished"):
        resumed(middle, "SOLVER.MAX_ITER", "2")


def test_a_new_training_in_the_directory_of_another_warns(middle: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(tiny_config(middle, *EMA), resume=False)
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING and "--resume continues it" in r.message]
    caplog.clear()
    resumed(middle)
    start(tiny_config(middle.parent / "other", *EMA), resume=False)
    assert "--resume continues it" not in caplog.text


def test_as_many_iterations_as_are_finished_complete_the_final_files(
    middle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer = resumed(middle, "SOLVER.MAX_ITER", "3")
        trainer.train()
    assert "finished: only its last evaluation follows" in caplog.text
    final = torch.load(middle / "model_final.pth", weights_only=True)
    middle_state = torch.load(middle / "model_0000002.pth", weights_only=True)
    assert final["iteration"] == final["trainer"]["_trainer"]["iteration"] == 2
    for name, value in middle_state["model"].items():
        assert torch.equal(final["model"][name], value)
    assert trainer.iter == 3


@pytest.mark.parametrize("state", ["absent", "of an earlier iteration", "truncated"])
def test_a_run_killed_before_its_last_file_writes_it(trained: Path, tmp_path: Path, state: str) -> None:
    shutil.copytree(trained, tmp_path / "out")
    file = tmp_path / "out/model_final.safetensors"
    expected = file.read_bytes()
    if state == "absent":
        file.unlink()
    elif state == "truncated":
        file.write_bytes(expected[:100])
    else:
        file.write_bytes(expected[:-4] + b"\0\0\0\0")
    resumed(tmp_path / "out").train()
    assert file.read_bytes() == expected
    time = file.stat().st_mtime_ns
    resumed(tmp_path / "out").train()  # all is there
    start(tiny_config(tmp_path / "out"), resume=True).train()  # EMA_DECAY 0: the file has the EMA weights all the same
    assert file.stat().st_mtime_ns == time
    assert load_weights(file).keys() == weights(resumed(tmp_path / "out")).keys()


def test_what_killed_saves_left_is_removed(middle: Path) -> None:
    left = [middle / ".model_0000005.pth.abcdefgh.tmp", middle / "inference/.metrics.json.abcdefgh.tmp"]
    kept = [middle / ".project.tmp", middle / ".notes.abcdefgh.tmp"]
    (middle / "inference").mkdir()
    for file in (*left, *kept):
        file.write_bytes(b"half")
    resumed(middle)
    assert not any(file.exists() for file in left) and all(file.is_file() for file in kept)


def in_optimizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda data: change(data["trainer"]["_trainer"]["optimizer"]["state"][0])


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no trainer": lambda data: data.pop("trainer"),
    "text trainer": lambda data: data.update(trainer="x"),
    "no step": lambda data: data["trainer"].pop("_trainer"),
    "no iteration": lambda data: data["trainer"].pop("iteration"),
    "another iteration": lambda data: data["trainer"]["_trainer"].update(iteration=1),
    "negative iteration": lambda data: data["trainer"].update(iteration=-5),
    "text seed": lambda data: data["trainer"].update(seed="7"),
    "no optimizer": lambda data: data["trainer"]["_trainer"].pop("optimizer"),
    "one element": in_optimizer(lambda state: state.update(exp_avg=torch.zeros(1))),
    "NaN step": in_optimizer(lambda state: state["step"].fill_(float("nan"))),
    "missing weight": lambda data: data["model"].pop("head.weight"),
    "NaN weight": lambda data: data["model"]["head.weight"].fill_(float("nan")),
    "text settings": lambda data: data["trainer"].update(settings="x"),
    "EMA of one element": lambda data: data["ema"]["average"].update({"head.weight": torch.zeros(1)}),
    "EMA of doubles": lambda data: data["ema"]["average"].update({"head.bias": torch.zeros(1).double()}),
    "EMA without a tensor": lambda data: data["ema"]["average"].pop("head.weight"),
    "EMA of NaN": lambda data: data["ema"]["average"]["head.bias"].fill_(float("nan")),
    "EMA without updates": lambda data: data["ema"].pop("updates"),
    "random state without NumPy": lambda data: data["trainer"]["random_states"][0].pop("numpy"),
    "position behind the words": lambda data: data["trainer"]["random_states"][0]["numpy"].__setitem__(2, 10**6),
    "random state of text": lambda data: data["trainer"].update(random_states=["x"]),
    "random states of text": lambda data: data["trainer"].update(random_states="x"),
    "losses of text": lambda data: data["trainer"]["random_states"][0].update(pending_losses="x"),
    "losses without rows": lambda data: data["trainer"]["random_states"][0].update(
        pending_losses={"names": ["a"], "rows": torch.zeros(2, 2), "steps": [], "seconds": 0.0}
    ),
    "hooks of text": lambda data: data["trainer"].update(hooks="x"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(
    middle: Path, damage: Callable[[dict[str, Any]], Any]
) -> None:
    edited(middle, damage)
    trainer = TinyTrainer(tiny_config(middle, *EMA))
    before = weights(trainer)
    with pytest.raises(CorruptCheckpointError, match=r"(?s)No checkpoint in .* can be resumed:\n.*model_0000002.pth"):
        trainer.resume_or_load(resume=True)
    assert trainer.optimizer.state_dict()["state"] == {}
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"value": "x"}', '{"value": NaN}', "[" * 100_000])
def test_a_damaged_note_of_the_best_model_is_named_before_anything_is_loaded(middle: Path, text: str) -> None:
    (middle / "model_best.json").write_text(text)
    (middle / "model_best.safetensors").write_bytes(b"")
    trainer = TinyTrainer(tiny_config(middle, *EMA))
    with pytest.raises(CorruptCheckpointError, match=r"model_best\.json is damaged .*Delete it"):
        trainer.resume_or_load(resume=True)
    assert trainer.optimizer.state_dict()["state"] == {}
    (middle / "baseline.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"baseline\.json is damaged"):
        OutputDirectory(middle).outcome()


def test_a_missing_moment_of_sgd_is_noticed(tmp_path: Path) -> None:
    settings = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", "4")
    start(tiny_config(tmp_path, *settings)).train()
    for file in tmp_path.glob("*.pth"):
        edited(tmp_path, in_optimizer(lambda state: state.pop("momentum_buffer")), file.name)
    with pytest.raises(CorruptCheckpointError, match="has no entry 'momentum_buffer'"):
        start(tiny_config(tmp_path, *settings), resume=True)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "out")
    edited(tmp_path / "out", lambda data: data.pop("trainer"), "model_final.pth")
    assert resumed(tmp_path / "out").start_iter == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data.pop("ema"), "no EMA weights"),
        (lambda data: data["trainer"].pop("random_states"), "no random states"),
        (lambda data: data["trainer"].pop("seed"), "no seed"),
        (lambda data: data["trainer"].pop("settings"), "settings of its training"),
    ],
)
def test_what_a_checkpoint_may_lack_is_told(
    middle: Path, change: Callable[[dict[str, Any]], Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    edited(middle, change)
    trainer = resumed(middle)
    assert trainer.start_iter == 3
    trainer.train()
    assert text in caplog.text


def test_an_own_poly_schedule_takes_the_new_length(tmp_path: Path) -> None:
    """Behind its saved length it would compute a power of a negative number."""

    class Poly(WarmupPolyLR):
        pass

    class Own(TinyTrainer):
        @classmethod
        def build_lr_scheduler(cls, cfg: Any, optimizer: Any) -> Any:
            return Poly(optimizer, cfg.SOLVER.MAX_ITER, warmup_iters=0)

    start(tiny_config(tmp_path), trainer_class=Own).train()
    longer = start(tiny_config(tmp_path, "SOLVER.MAX_ITER", "9"), resume=True, trainer_class=Own)
    longer.train()
    assert longer.scheduler.max_iters == 9 and type(rate_of(longer)) is float


def test_final_weights_stay_where_ema_is_switched_off(trained: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(trained, directory)
    final = (directory / "model_final.safetensors").read_bytes()
    start(tiny_config(directory), resume=True).train()
    assert (directory / "model_final.safetensors").read_bytes() == final


@pytest.mark.parametrize("note", ["", "[]", '{"value": null}', '{"value": NaN}', '{"metric": "segm/AP"}', "[" * 99_999])
def test_a_damaged_note_of_the_best_model_is_named(middle: Path, note: str) -> None:
    """Without its value a worse model would replace the best one."""
    (middle / "model_best.json").write_text(note)
    assert resumed(middle).best.value == -math.inf  # without the weights there is nothing to lose
    (middle / "model_best.safetensors").touch()
    with pytest.raises(CorruptCheckpointError, match=r"model_best\.json"):
        resumed(middle)
