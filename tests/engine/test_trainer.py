"""The trainer's public face: attributes and methods that hooks and subclasses use, and the form of its checkpoints."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BitMasks, Instances
from tiny_training import TinyModel, TinyTrainer, start, tiny_config, weights
from torch import nn

from mask2former.data.batch_transport import collate
from mask2former.data.build import _Loader
from mask2former.engine import Trainer
from mask2former.engine import trainer as trainer_module
from mask2former.engine.distributed import get_random_state
from mask2former.engine.train_step import TrainStep
from mask2former.errors import CheckpointError, ConfigError

OVERRIDABLE = (
    *("build_model", "build_optimizer", "build_lr_scheduler", "build_train_loader", "build_test_loader"),
    *("build_evaluator", "build_hooks", "build_writers", "test", "auto_scale_workers", "resume_or_load", "run_step"),
)


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_methods_of_detectron2s_trainer_keep_their_names_and_kinds(name: str) -> None:
    def kind(owner: type) -> type:
        return next(type(vars(each)[name]) for each in owner.__mro__ if name in vars(each))

    assert kind(Trainer) is kind(DefaultTrainer)


class Recorder(HookBase):
    """Looks at what hooks may look at."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def before_train(self) -> None:
        trainer = self.trainer
        assert trainer.optimizer.param_groups and trainer.scheduler.optimizer is trainer.optimizer
        assert trainer.checkpointer.model is trainer.model
        assert trainer.data_loader.seed == trainer.cfg.SEED
        self.seen.append(f"train {trainer.start_iter} {trainer.max_iter}")

    def before_step(self) -> None:
        self.seen.append(f"before {self.trainer.iter} {self.trainer.storage.iter}")

    def after_backward(self) -> None:
        assert all(p.grad is not None for p in self.trainer.model.parameters())
        self.seen.append("backward")

    def after_step(self) -> None:
        self.seen.append(f"after {self.trainer.iter}")

    def after_train(self) -> None:
        self.seen.append(f"end {self.trainer.iter}")


def test_hooks_are_called_in_order_and_find_their_attributes(tmp_path: Path) -> None:
    trainer, hook = start(tiny_config(tmp_path, "SOLVER.MAX_ITER", "2")), Recorder()
    trainer.register_hooks([hook])
    trainer.train()
    one = [["before 0 0", "backward", "after 0"], ["before 1 1", "backward", "after 1"]]
    assert hook.seen == ["train 0 2", *one[0], *one[1], "end 2"]


class NormModel(TinyModel):
    def __init__(self, dropout: float) -> None:
        super().__init__(dropout)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        x = self.norm(torch.stack([sample["x"] for sample in batch]))
        return super().forward([{**sample, "x": row} for sample, row in zip(batch, x, strict=True)])


class NormTrainer(TinyTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return NormModel(cls.dropout)


def test_detectron2s_own_hooks_work(tmp_path: Path) -> None:
    keys = ("TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "5", "TEST.EVAL_PERIOD", "2")
    trainer = start(tiny_config(tmp_path, *keys), trainer_class=NormTrainer)
    kinds = [type(hook) for hook in trainer._hooks]
    assert kinds.index(d2_hooks.IterationTimer) == 0
    assert d2_hooks.PreciseBN in kinds and any(issubclass(kind, d2_hooks.PeriodicWriter) for kind in kinds)
    calls: list[int] = []
    schedule = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda _: 1.0)
    trainer.register_hooks(
        [
            d2_hooks.LRScheduler(scheduler=schedule),
            d2_hooks.EvalHook(4, lambda: calls.append(trainer.iter) or {"mine": {"value": 2.0}}),
            d2_hooks.BestCheckpointer(4, trainer.checkpointer, "mine/value", file_prefix="mine"),
            d2_hooks.TorchMemoryStats(),
            d2_hooks.CallbackHook(after_step=lambda t: calls.append(t.iter) if t.iter == 5 else None),
        ]
    )
    trainer.train()
    assert calls == [3, 5, 6]
    assert schedule.last_epoch == 6
    assert (tmp_path / "mine.pth").is_file()
    assert "time" in (tmp_path / "metrics.json").read_text()
    assert trainer.model.norm.num_batches_tracked > 6  # precise statistics took more batches than the training


def test_a_subclass_can_replace_the_step(tmp_path: Path) -> None:
    class Plain(TinyTrainer):
        def run_step(self) -> None:
            losses = self.model(next(self.batches))
            self.optimizer.zero_grad()
            sum(losses.values()).backward()
            self.after_backward()
            self.optimizer.step()

    trainer = start(tiny_config(tmp_path), trainer_class=Plain)
    before = weights(trainer)
    trainer.train()
    assert trainer.iter == trainer.scheduler.last_epoch == 6
    assert not torch.equal(before["head.weight"], weights(trainer)["head.weight"])
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 5


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("replaced", [True, False])
def test_only_a_model_that_reads_them_gets_bits_of_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool, replaced: bool
) -> None:
    class Stepping(TinyTrainer):
        def run_step(self) -> None:
            super().run_step()

    trainer_class = Stepping if replaced else TinyTrainer
    trainer = start(tiny_config(tmp_path, "SOLVER.MAX_ITER", "2"), trainer_class=trainer_class)
    trainer.model.reads_mask_bits = reads
    asked: list[Any] = []
    monkeypatch.setattr(trainer_module, "with_mask_bits", lambda loader: asked.append(loader) or loader)
    trainer.train()
    assert asked == ([trainer.data_loader] if reads and not replaced else [])


class MaskedTrainer(TinyTrainer):
    """Has a loader whose masks may be bits, and a model that says that it reads them."""

    @classmethod
    def build_train_loader(cls, cfg: Any, *, start_iteration: int = 0, seed: int | None = None) -> Any:
        masks = torch.ones(2, 3, 5, dtype=torch.bool)
        x, y = torch.ones(4), torch.ones(())
        return _Loader(
            [
                {"x": x, "y": y, "instances": Instances((3, 5), gt_masks=masks)},
                {"x": x, "y": y, "instances": [Instances((3, 5), gt_masks=BitMasks(masks))]},
            ]
            * 8,
            batch_size=2,
            collate_fn=collate,
        )

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        model = super().build_model(cfg)
        model.reads_mask_bits = True
        return model


class MaskedWrapper(nn.Module):
    """Mixes batches before its model gets them, say."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Any:
        return self.module(batch)


class OwnStep(TrainStep):
    def _forward_backward(self, model: nn.Module, batch: Any) -> Any:
        return super()._forward_backward(model, batch)


@pytest.mark.parametrize("change", ["none", "wrapper", "step", "step of the object", "late"])
def test_other_code_than_the_model_gets_masks(tmp_path: Path, change: str) -> None:
    trainer = start(tiny_config(tmp_path, "SOLVER.MAX_ITER", "2"), trainer_class=MaskedTrainer)
    kinds: list[tuple[type, type]] = []

    def look(batch: Any) -> None:
        image, (frame,) = batch[0]["instances"], batch[1]["instances"]
        kinds.append((type(image.gt_masks), type(frame.gt_masks)))
        if kinds[-1] == (torch.Tensor, BitMasks):
            assert image.gt_masks.all() and frame.gt_masks.tensor.all() and image.gt_masks.is_contiguous()

    class Reader(HookBase):
        def before_train(self) -> None:
            look(next(self.trainer.batches))
            if change == "late":
                self.trainer.model.reads_mask_bits = False  # as after the registration of a forward hook

    trainer.model.register_forward_pre_hook(lambda _, inputs: look(inputs[0]))
    trainer.register_hooks([Reader()])
    if change == "wrapper":
        trainer.model = MaskedWrapper(trainer.model)
    elif change == "step":
        trainer.train_step.__class__ = OwnStep
    elif change == "step of the object":
        trainer.train_step.run = functools.partial(trainer.train_step.run)
    trainer.train()
    masks = (torch.Tensor, BitMasks)
    assert kinds[0] == masks and len(kinds) == 3
    assert all((kind == masks) == (change != "none") for kind in kinds[1:])


def test_a_replaced_model_is_the_one_that_is_trained(tmp_path: Path) -> None:
    trainer = start(tiny_config(tmp_path, "SOLVER.MAX_ITER", "2"))
    inner, calls = trainer.model, []

    class Wrapped(nn.Module):
        def forward(self, batch: Any) -> Any:
            calls.append(len(batch))
            return inner(batch)

    trainer.model = Wrapped()
    trainer.train()
    assert calls == [4, 4]


def test_checkpoints_in_the_form_of_earlier_versions_can_be_resumed(tmp_path: Path) -> None:
    """The form: what detectron2's DefaultTrainer writes, with nonfinite_steps, grad_scaler, seed, random_states."""
    fp16 = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")
    straight = start(tiny_config(tmp_path / "straight", *fp16))
    straight.train()
    new = torch.load(tmp_path / "straight" / "model_0000002.pth", weights_only=True)
    middle = new["trainer"]
    scaler = {"scale": 128.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    old = {
        "iteration": 2,
        "hooks": {"ScheduleHook": middle["hooks"]["ScheduleHook"]},
        "_trainer": {
            "iteration": 2,
            "optimizer": middle["_trainer"]["optimizer"],
            "nonfinite_steps": 4,
            "grad_scaler": {**scaler, "_growth_tracker": 3},
        },
        "seed": 7,
        "random_states": middle["random_states"],
    }
    assert old.keys() == middle.keys() - {"settings"}
    assert old["_trainer"].keys() == middle["_trainer"].keys()
    assert new.keys() == {"model", "trainer", "iteration"}
    target = tmp_path / "resumed"
    target.mkdir()
    torch.save({"model": new["model"], "trainer": old, "iteration": 2}, target / "model_0000002.pth")
    (target / "last_checkpoint").write_text("model_0000002.pth")
    resumed = start(tiny_config(target, *fp16), resume=True)
    assert resumed.start_iter == 3 and resumed.seed == 7
    assert resumed.scheduler.last_epoch == 3
    assert resumed.train_step.log.bad_steps == 4
    assert resumed.train_step.grad_scaler is not None
    assert resumed.train_step.grad_scaler.state_dict() == old["_trainer"]["grad_scaler"]
    saved = middle["_trainer"]["optimizer"]["state"]
    assert torch.equal(resumed.optimizer.state_dict()["state"][0]["exp_avg"], saved[0]["exp_avg"])
    resumed.train()
    for name, value in weights(straight).items():  # a scale that is a power of two changes no bit
        torch.testing.assert_close(weights(resumed)[name], value, msg=name)


def test_checkpoint_without_random_states_of_detectron2_itself(tmp_path: Path) -> None:
    trainer = start(tiny_config(tmp_path))
    inner = {"iteration": 1, "optimizer": trainer.optimizer.state_dict()}
    trainer.load_state_dict({"iteration": 1, "hooks": {"LRScheduler": {}}, "_trainer": inner})
    assert trainer.iter == 1 and trainer.seed == 7
    assert trainer.state_dict()["random_states"][0].keys() == get_random_state().keys()


def test_a_training_that_fails_in_its_last_iteration_does_not_evaluate(tmp_path: Path) -> None:
    class Failing(TinyTrainer):
        def run_step(self) -> None:
            if self.iter == self.max_iter - 1:
                raise ValueError("a bad record")
            super().run_step()

        @classmethod
        def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
            raise AssertionError("evaluated")

    trainer, hook = start(tiny_config(tmp_path), trainer_class=Failing), Recorder()
    trainer.register_hooks([hook])
    with pytest.raises(ValueError, match="a bad record"):
        trainer.train()
    assert hook.seen[-1] == "end 5"


@pytest.mark.parametrize(("expected", "passes"), [(1.0, True), (2.0, False)])
def test_expected_results(tmp_path: Path, expected: float, passes: bool) -> None:
    key = ("TEST.EXPECTED_RESULTS", f"[['segm', 'AP', {expected}, 0.1]]")
    trainer = start(tiny_config(tmp_path, *key))
    if passes:
        assert trainer.train() == {"segm": {"AP": 1.0}}
    else:
        with pytest.raises(SystemExit):
            trainer.train()


class Counting(DatasetEvaluator):
    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.count += len(inputs)

    def evaluate(self) -> dict[str, Any]:
        return {"segm": {"AP": float(self.count)}}


class Evaluating(TinyTrainer):
    test = classmethod(Trainer.test.__func__)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        sample = {"x": torch.zeros(4), "y": torch.zeros(())}
        return [[sample]] * {"two": 2, "three": 3, "none": 1}[dataset_name]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        if dataset_name == "none":
            raise NotImplementedError("no ground truth")
        return Counting()


def test_one_dataset_has_its_results_without_a_name(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, "DATASETS.TEST", "('two',)")
    assert Evaluating.test(cfg, TinyModel()) == {"segm": {"AP": 2.0}}
    assert '"two"' in (tmp_path / "inference" / "metrics.json").read_text()


def test_several_datasets_have_their_results_by_name(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, "DATASETS.TEST", "('two', 'three', 'none')")
    expected = {"two": {"segm": {"AP": 2.0}}, "three": {"segm": {"AP": 3.0}}, "none": {}}
    assert Evaluating.test(cfg, TinyModel()) == expected
    with pytest.raises(ValueError, match="1 evaluators were given for the 3 datasets"):
        Evaluating.test(cfg, TinyModel(), Counting())


def test_weights_that_do_not_fit_are_not_evaluated_or_trained(tmp_path: Path) -> None:
    trainer = start(tiny_config(tmp_path / "a"))
    state = trainer.checkpointer.model.state_dict()
    torch.save({"net.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    torch.save({key: value for key, value in list(state.items())[:-1]}, tmp_path / "part.pth")
    foreign, part = (
        tiny_config(tmp_path / "b", "MODEL.WEIGHTS", str(tmp_path / f"{n}.pth")) for n in ("foreign", "part")
    )
    with pytest.raises(CheckpointError, match="0 of"):
        TinyTrainer.load_for_test(foreign)
    with pytest.raises(CheckpointError, match="0 of"):
        start(foreign)
    with pytest.raises(CheckpointError, match="ALLOW_PARTIAL_WEIGHTS"):
        TinyTrainer.load_for_test(part)
    start(part)
    allowed = ("MODEL.ALLOW_PARTIAL_WEIGHTS", "True")
    TinyTrainer.load_for_test(tiny_config(tmp_path / "b", "MODEL.WEIGHTS", str(tmp_path / "part.pth"), *allowed))
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS is empty"):
        TinyTrainer.load_for_test(tiny_config(tmp_path / "b"))
    TinyTrainer.load_for_test(tiny_config(tmp_path / "b", *allowed))
