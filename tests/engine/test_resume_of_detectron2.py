"""A directory that a trainer of detectron2 has written, as the reference implementation does, is resumed here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.projects.deeplab import build_lr_scheduler
from tiny_training import EndlessLoader, TinyModel, start, tiny_config, weights
from torch import nn

from mask2former.engine.optimizer import parameter_settings


class TheirTrainer(DefaultTrainer):
    """One parameter group for each parameter, without names, as the reference implementation builds them."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return TinyModel()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return EndlessLoader(cfg.SOLVER.IMS_PER_BATCH, 0, cfg.SEED)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        groups = []
        for module_name, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                rate, decay = parameter_settings(cfg, module_name, module, name)
                groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
        return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        return {}


def test_resuming(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(3)
    theirs = TheirTrainer(tiny_config(tmp_path, "SOLVER.MAX_ITER", "3"))
    theirs.train()
    with caplog.at_level(logging.INFO):
        ours = start(tiny_config(tmp_path), resume=True)
    assert ours.start_iter == 3 and "taken in their order" in caplog.text
    named = dict(theirs.model.named_parameters())
    assert all(torch.equal(value, named[name]) for name, value in weights(ours).items())
    parameters = dict(ours.checkpointer.model.named_parameters())
    assert len(ours.optimizer.param_groups) < len(theirs.optimizer.param_groups) == len(parameters)
    for name, parameter in parameters.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(ours.optimizer.state[parameter][key], theirs.optimizer.state[named[name]][key]), name
    ours.train()
    assert ours.finished == 6


def test_other_parameters_are_refused_with_a_way_out(tmp_path: Path) -> None:
    theirs = TheirTrainer(tiny_config(tmp_path, "SOLVER.MAX_ITER", "3"))
    theirs.train()
    file = tmp_path / "model_0000002.pth"
    data = torch.load(file, weights_only=True)
    del data["trainer"]["_trainer"]["optimizer"]["param_groups"][-1]
    torch.save(data, file)
    (tmp_path / "last_checkpoint").write_text(file.name)
    (tmp_path / "model_final.pth").unlink()
    with pytest.raises(ValueError, match="MODEL.WEIGHTS"):
        start(tiny_config(tmp_path), resume=True)
