"""Trainers of other projects: overrides in detectron2's forms, and calls as public scripts make them."""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, HookBase, default_argument_parser
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventWriter, JSONWriter
from torch import nn

import train_net
import train_net_video
from mask2former import COCOInstanceNewBaselineDatasetMapper, InstanceSegEvaluator, MaskFormer
from mask2former.config_values import BUILDERS
from mask2former.engine import commands
from mask2former.engine.trainer_data import TrainerData
from mask2former.errors import ConfigError
from train_net import Trainer

from ..engine.tiny_training import EndlessLoader, TinyModel, tiny_config
from .client_models import INSTANCE, client_config, record

NAME = "client_images"
LITTLE = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3),
    *("INPUT.IMAGE_SIZE", 64, "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
    *("SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (1,), "SOLVER.AMP.ENABLED", False),
    *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "TEST.EVAL_PERIOD", 0, "SEED", 3),
]


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[CfgNode]:
    """A small model and a dataset that a client has registered; detectron2 finds the ground truth by itself."""
    first = record(tmp_path)
    DatasetCatalog.register(NAME, lambda: [{**first, "image_id": number} for number in range(3)])
    MetadataCatalog.get(NAME).set(thing_classes=["a", "b", "c"], evaluator_type="coco")
    yield client_config(INSTANCE, [*LITTLE, "OUTPUT_DIR", str(tmp_path / "out")])
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


class ClientLoaders:
    """The override that nearly every project has: a mapper of its own, in detectron2's loader."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=COCOInstanceNewBaselineDatasetMapper(cfg, True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return DatasetEvaluators([InstanceSegEvaluator(dataset_name, output_dir=output_folder)])


@pytest.mark.slow
@pytest.mark.parametrize("base", [Trainer, DefaultTrainer])
def test_detectron2s_loaders_with_our_mapper(cfg: CfgNode, base: type, caplog: pytest.LogCaptureFixture) -> None:
    """With our trainer, and with detectron2's, which has no clipping of the full model."""
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = base is Trainer
    trainer = type("Mine", (ClientLoaders, base), {})(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        results = trainer.train()
    assert results is None or set(results) == {"segm"}
    assert trainer.iter == 2 and trainer.max_iter == 2 and trainer.start_iter == 0
    changed = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) > 100
    lost = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "build_train" in r.getMessage()]
    assert len(lost) == (base is Trainer)
    assert all("no seed and no start_iteration" in text and "resumed training" in text for text in lost)


@pytest.mark.slow
def test_calls_on_the_class(cfg: CfgNode) -> None:
    """As the scripts of other projects evaluate."""
    model = Trainer.build_model(cfg)
    assert isinstance(model, MaskFormer)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    results = Trainer.test(cfg, model, evaluators=[InstanceSegEvaluator(NAME)])
    assert "AP" in results["segm"] and Trainer.test(cfg, model).keys() == {"segm"}
    optimizer = Trainer.build_optimizer(cfg, model)
    assert Trainer.build_lr_scheduler(cfg, optimizer).optimizer is optimizer
    assert len(next(iter(Trainer.build_train_loader(cfg)))) == 2
    assert len(Trainer.build_test_loader(cfg, NAME)) == 3
    assert isinstance(Trainer.build_evaluator(cfg, NAME, "somewhere"), DatasetEvaluator)


class Zero(DatasetEvaluator):
    def evaluate(self) -> Any:
        return {"segm": {"AP": 0.0}}


class Overridden(Trainer):
    """Every method in the form that detectron2's trainer has."""

    called: list[str] = []

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.mine = True

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        cls.called.append("model")
        return TinyModel()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        cls.called.append("train loader")
        return EndlessLoader(cfg.SOLVER.IMS_PER_BATCH, 0, cfg.SEED)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        cls.called.append("test loader")
        return list(itertools.islice(EndlessLoader(1, 0, 1), 6))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        cls.called.append("evaluator")
        return Zero()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        cls.called.append("optimizer")

        class FullModelClipping(torch.optim.AdamW):
            def step(self, closure: Any = None) -> Any:
                parameters = itertools.chain(*(group["params"] for group in self.param_groups))
                torch.nn.utils.clip_grad_norm_(parameters, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
                return super().step(closure)

        return FullModelClipping([{"params": [p]} for p in model.parameters()], cfg.SOLVER.BASE_LR)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        cls.called.append("schedule")
        return torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def build_hooks(self) -> list[HookBase]:
        self.called.append("hooks")
        hooks = super().build_hooks()
        hooks.insert(-1, SeenHook())
        return hooks

    def build_writers(self) -> list[EventWriter]:
        self.called.append("writers")
        return [JSONWriter(str(Path(self.cfg.OUTPUT_DIR) / "own.json"))]

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        cls.called.append(f"test of {evaluators}" if evaluators is None else "test with TTA")
        return OrderedDict(segm={"AP": 1.0})

    def run_step(self) -> None:
        self.called.append("step")
        super().run_step()


class SeenHook(HookBase):
    def before_train(self) -> None:
        trainer = self.trainer
        assert (
            trainer.mine and trainer.cfg.SEED == 7 and trainer.storage.iter == trainer.start_iter == trainer.iter == 0
        )
        assert trainer.checkpointer.model is trainer.model and trainer.scheduler.optimizer is trainer.optimizer
        assert isinstance(trainer.data_loader, EndlessLoader) and self in trainer._hooks


def test_every_override_is_called(tmp_path: Path) -> None:
    Overridden.called = []
    trainer = Overridden(tiny_config(tmp_path, "SOLVER.MAX_ITER", "2"))
    assert isinstance(trainer.data_loader, EndlessLoader)  # may be read before the training
    trainer.resume_or_load(resume=False)
    trainer.train()
    counts = {name: Overridden.called.count(name) for name in Overridden.called}
    expected = {name: 1 for name in ("model", "optimizer", "schedule", "hooks", "writers", "train loader")}
    assert counts == {**expected, "step": 2, "test of None": 1}
    assert (tmp_path / "own.json").read_text()
    assert trainer.scheduler.last_epoch == 2
    with pytest.raises(AttributeError, match="override run_step"):
        trainer._trainer.run_step()


def test_augmented_evaluation_of_a_subclass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes through an overridden `test`, as in the reference implementation, and tells what a short form loses."""
    monkeypatch.setattr("mask2former.engine.trainer_evaluation.with_tta", lambda cfg, model: model)
    Overridden.called = []
    with caplog.at_level(logging.WARNING):
        results = Overridden.test_with_TTA(tiny_config(tmp_path), TinyModel())
    assert results == {"segm_TTA": {"AP": 1.0}}
    assert Overridden.called == ["evaluator", "test with TTA"]
    assert "Overridden.build_evaluator takes no output_folder" in caplog.text


def test_our_keywords_are_passed_where_they_are_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[dict[str, Any]] = []

    class Any_(Overridden):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode, **keywords: Any) -> Any:
            seen.append(keywords)
            return EndlessLoader(4, 0, 1)

    class Seeded(Overridden):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode, seed: int = 0) -> Any:
            seen.append({"seed": seed})
            return EndlessLoader(2, 0, 1)

    with caplog.at_level(logging.WARNING):
        assert Any_(tiny_config(tmp_path)).data_loader.batch_size == 4
        assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
        assert Seeded(tiny_config(tmp_path, "SOLVER.ACCUMULATION_STEPS", "2")).data_loader.batch_size == 2
    assert seen == [{"start_iteration": 0, "seed": 7}, {"seed": 7}]
    (text,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert "Seeded.build_train_loader takes no start_iteration: a resumed training does not continue" in text
    assert text.endswith("Its form (cls, cfg, *, start_iteration=0, seed=None) gets both.")
    assert "each of the 2 micro-batches of a step (SOLVER.ACCUMULATION_STEPS) is a batch of the loader" in text


def test_a_program_that_set_up_no_logging_sees_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("mask2former")
    for name, value in {"handlers": [], "propagate": False, "level": logging.WARNING}.items():
        monkeypatch.setattr(log, name, value)
    Trainer(tiny_config(tmp_path))
    Trainer(tiny_config(tmp_path))
    log.info("iter 1/5")
    assert capsys.readouterr().out.count("iter 1/5") == (tmp_path / "log.txt").read_text().count("iter 1/5") == 1
    for handler in log.handlers:
        handler.close()


def test_a_mapper_that_only_a_subclass_knows(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, "INPUT.DATASET_MAPPER_NAME", "of_a_client")
    Overridden(cfg)

    class Plain(Overridden):
        build_train_loader = TrainerData.build_train_loader

    Plain._check_mapper(tiny_config(tmp_path))
    with pytest.raises(ConfigError, match="INPUT.DATASET_MAPPER_NAME is 'of_a_client'"):
        Trainer._check_mapper(cfg)


OWN_VALUES = {
    "SOLVER.OPTIMIZER": "LION",
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "agc",
    "SOLVER.LR_SCHEDULER_NAME": "OneCycleLR",
    "DATALOADER.SAMPLER_TRAIN": "ClassAwareSampler",
}


@pytest.mark.parametrize("key", OWN_VALUES)
def test_values_that_only_a_subclass_knows(cfg: CfgNode, tmp_path: Path, key: str) -> None:
    """`setup` takes any; our own methods name what they know before anything is built."""
    cfg.merge_from_list([key, OWN_VALUES[key]])
    file = tmp_path / "client.yaml"
    file.write_text(cfg.dump())
    args = default_argument_parser().parse_args(["--config-file", str(file), "--num-gpus", "0"])
    try:
        cfg = train_net.setup(args)
    finally:
        for name in ("mask2former", "detectron2", "fvcore"):
            logging.getLogger(name).handlers.clear()
    Overridden(cfg)
    method = next(name for name, keys in BUILDERS.items() if key in keys)
    plain = type("Plain", (Overridden,), {"called": [], method: getattr(Trainer, method)})
    with pytest.raises(ConfigError, match=rf"^{key} is '{OWN_VALUES[key]}', but must be one of"):
        plain(cfg)
    assert plain.called == []  # type: ignore[attr-defined]


def test_setup_of_a_registered_architecture(cfg: CfgNode, tmp_path: Path) -> None:
    """With detectron2's parser of arguments, a foreign mapper, and the setup that scripts import from train_net."""

    class ClientArchitecture(MaskFormer):
        pass

    META_ARCH_REGISTRY.register(ClientArchitecture)
    try:
        file = tmp_path / "client.yaml"
        cfg.MODEL.META_ARCHITECTURE, cfg.INPUT.DATASET_MAPPER_NAME = "ClientArchitecture", "of_a_client"
        file.write_text(cfg.dump())
        args = default_argument_parser().parse_args(["--config-file", str(file), "--num-gpus", "0"])
        loaded = train_net.setup(args)
        model = Trainer.build_model(loaded)
        assert type(model) is ClientArchitecture and loaded.is_frozen()
    finally:
        del META_ARCH_REGISTRY._obj_map["ClientArchitecture"]
        for name in ("mask2former", "detectron2", "fvcore"):
            logging.getLogger(name).handlers.clear()


def test_both_scripts_give_the_same_names() -> None:
    for name in ("Trainer", "setup", "main"):
        assert getattr(train_net, name) is getattr(train_net_video, name)


@pytest.mark.parametrize(("expected", "status"), [(1.0, None), (2.0, 1)])
def test_an_evaluation_is_compared_with_expected_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: float, status: int | None
) -> None:
    key = ("TEST.EXPECTED_RESULTS", f"[['segm', 'AP', {expected}, 0.1], ['segm_TTA', 'AP', 1.0, 0.1]]")
    cfg = tiny_config(tmp_path, *key, "TEST.AUG.ENABLED", "True")
    monkeypatch.setattr(commands, "setup", lambda args: cfg)
    monkeypatch.setattr("mask2former.engine.trainer_evaluation.with_tta", lambda cfg, model: model)
    monkeypatch.setattr(Overridden, "load_for_test", classmethod(lambda cls, cfg, resume: TinyModel()))
    args: Any = SimpleNamespace(eval_only=True, resume=False)
    if status is None:
        results: Any = train_net.main(args, Overridden)
        assert set(results) == {"segm", "segm_TTA"}
        return
    with pytest.raises(SystemExit) as stop:
        train_net.main(args, Overridden)
    assert stop.value.code == status


def test_expected_results_of_another_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path, "TEST.EXPECTED_RESULTS", "[['panoptic_seg', 'PQ', 1.0, 0.1]]")
    monkeypatch.setattr(commands, "setup", lambda args: cfg)
    monkeypatch.setattr(Overridden, "load_for_test", classmethod(lambda cls, cfg, resume: TinyModel()))
    with pytest.raises(ValueError, match="'panoptic_seg', but the evaluation gives: segm"):
        train_net.main(SimpleNamespace(eval_only=True, resume=False), Overridden)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_trainer_without_setup_names_the_key_of_a_missing_device(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE: device 'cuda': PyTorch finds 0"):
        Trainer.build_model(tiny_config(tmp_path, "MODEL.DEVICE", "cuda"))
