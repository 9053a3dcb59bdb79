"""A model and a data source small enough to train in a test, with all the randomness that real ones have."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor, nn

from mask2former.config import load_config
from mask2former.engine.best_model import evaluate_datasets, without_single_name
from mask2former.engine.trainer import Trainer


class TinyModel(nn.Module):
    """Two losses on (B, 4) inputs; norm, embedding, bare parameter and backbone meet all optimizer rules."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(3, 8)
        self.level_embed = nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(8, 1)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        x = torch.stack([sample["x"] for sample in batch]).to(self.level_embed)
        hidden = self.dropout(self.backbone(x)) + self.level_embed + self.embedding.weight.mean(0)
        y = self.head(hidden).squeeze(1)
        target = torch.stack([sample["y"] for sample in batch]).to(y)
        return {"loss_ce": (y - target).square().mean(), "loss_mask_0": 0.1 * y.abs().mean()}


class EndlessLoader:
    """Batches in an order given by (seed, position), augmented with the process's own random numbers."""

    def __init__(self, batch_size: int, start: int, seed: int, bad: dict[int, float] | None = None) -> None:
        self.batch_size, self.start, self.seed, self.bad = batch_size, start, seed, bad or {}

    def __iter__(self) -> Any:
        torch.rand(())  # torch's DataLoader also draws when an iterator is made
        return self._batches()

    def _batches(self) -> Any:
        position = self.start
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1000 + position)
            batch = []
            for i in range(self.batch_size):
                x = torch.randn(4, generator=generator) + 0.01 * random.random() + 0.01 * float(np.random.rand())
                x = x * self.bad.get(position, 1.0)
                batch.append({"x": x, "y": x.sum(), "file_name": f"image_{position}_{i}.png"})
            yield batch
            position += 1


class TinyTrainer(Trainer):
    """Trainer on `TinyModel`; `bad` maps a position in the data to a factor on its inputs."""

    log_period = 2
    dropout = 0.2
    bad: dict[int, float] = {}
    metrics: list[float] = []

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return TinyModel(cls.dropout)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0, seed: int | None = None) -> Any:
        steps = cfg.SOLVER.ACCUMULATION_STEPS
        assert seed is not None
        return EndlessLoader(cfg.SOLVER.IMS_PER_BATCH // steps, start_iteration * steps, seed, cls.bad)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        torch.rand(5)
        random.random()
        return {"segm": {"AP": cls.metrics.pop(0) if cls.metrics else 1.0}}


class MeanLoss(DatasetEvaluator):
    """Mean loss, which stands for a metric: it depends on the weights, and gets better."""

    def reset(self) -> None:
        self.values: list[float] = []

    def process(self, inputs: Any, outputs: Any) -> None:
        self.values.append(float(outputs["loss_ce"]))

    def evaluate(self) -> Any:
        return {"segm": {"AP": 100 - 10 * sum(self.values) / len(self.values), "first": self.values[0]}}


class EvaluatedTrainer(TinyTrainer):
    """Evaluates batch by batch, as `Trainer` does; subclasses have the `build_test_loader`."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return MeanLoss()

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        return without_single_name(evaluate_datasets(cls, cfg, model))


def tiny_config(directory: Path, *overrides: str) -> CfgNode:
    """CPU config of six steps; `overrides` are KEY VALUE pairs."""
    settings = [
        *("OUTPUT_DIR", str(directory), "MODEL.DEVICE", "cpu", "SEED", "7", "DATASETS.TEST", "('tiny_val',)"),
        *("SOLVER.MAX_ITER", "6", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01"),
        *(
            "SOLVER.CHECKPOINT_PERIOD",
            "3",
            "SOLVER.LR_SCHEDULER_NAME",
            "WarmupPolyLR",
            "SOLVER.WARMUP_ITERS",
            "2",
        ),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"),
    ]
    cfg = load_config(None, [*settings, *overrides])
    cfg.freeze()
    return cfg


def start(cfg: CfgNode, resume: bool = False, trainer_class: type[TinyTrainer] = TinyTrainer) -> TinyTrainer:
    """A trainer ready for `train()`, from seeded random weights."""
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the model's weights."""
    return {name: value.clone() for name, value in trainer.checkpointer.model.state_dict().items()}
