"""Evaluations run in fp32 unless TEST.AMP says otherwise: the model does, and nothing around it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from tiny_training import TinyModel, TinyTrainer, tiny_config
from torch import nn

from mask2former.engine import Trainer

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


class Seeing(nn.Module):
    """Returns the type in which products of fp32 matrices are computed, for a semantic model's result as well."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.types: list[torch.dtype] = []

    def forward(self, inputs: Any) -> list[dict[str, Any]]:
        assert not self.training
        self.types.append((self.weight @ self.weight).dtype)
        return [{"sem_seg": torch.zeros(2, *x["image"].shape[-2:])} for x in inputs]


class Products(DatasetEvaluator):
    """Collects the types of the evaluator's own products."""

    types: set[torch.dtype] = set()

    def process(self, inputs: Any, outputs: Any) -> None:
        self.types.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)

    def evaluate(self) -> dict[str, Any]:
        return {"sem_seg": {"mIoU": 50.0}}


class Evaluating(TinyTrainer):
    test = classmethod(Trainer.test.__func__)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return [[{"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "height": 8, "width": 8}]] * 2

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return Products()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], FP32),
        (["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"], FP32),
        (["TEST.AMP", "bfloat16"], BF16),
        (["TEST.AMP", "float16"], FP16),
        (["TEST.AMP", "auto"], "native"),
        (["TEST.AMP", "off", "SOLVER.AMP.ENABLED", "True"], FP32),
    ],
)
@pytest.mark.parametrize("augmented", [False, True])
def test_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str], expected: Any, augmented: bool
) -> None:
    monkeypatch.setattr("mask2former.utils.device.cpu_multiplies", lambda dtype: augmented)
    if expected == "native":
        expected = BF16 if augmented else FP32
    architecture = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "TEST.AUG.MIN_SIZES", "[8]"]
    cfg = tiny_config(tmp_path, *architecture, *keys)
    model = Seeing().train()
    monkeypatch.setattr(Products, "types", set())
    results = (Evaluating.test_with_TTA if augmented else Evaluating.test)(cfg, model)
    assert results == {"sem_seg_TTA" if augmented else "sem_seg": {"mIoU": 50.0}}
    assert set(model.types) == {expected} and len(model.types) == (4 if augmented else 2)  # with the flipped views
    assert Products.types == {FP32}
    assert model.training  # as it was


def test_a_training_evaluates_in_the_precision_of_evaluations(tmp_path: Path) -> None:
    keys = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]
    types = []

    class Model(TinyModel):
        def forward(self, batch: Any) -> Any:
            if not self.training:
                types.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().forward([{"x": torch.zeros(4), "y": torch.zeros(())} for _ in batch])

    class Training(Evaluating):
        @classmethod
        def build_model(cls, cfg: CfgNode) -> nn.Module:
            return Model()

    for more, expected in (([], FP32), (["TEST.AMP", "bfloat16"], BF16)):
        trainer = Training(tiny_config(tmp_path / str(expected), *keys, *more))
        trainer.evaluate()
        assert set(types) == {expected}
        types.clear()


@pytest.mark.parametrize(
    ("keys", "native", "told"),
    [
        ([], True, "Results (fp32, MODEL.COMPILE auto):"),
        (["TEST.AMP", "auto", "MODEL.COMPILE", "graph"], True, "Results (bfloat16, MODEL.COMPILE graph):"),
        (["TEST.AMP", "auto"], False, "Results (fp32, MODEL.COMPILE auto):"),  # a CPU that is slower in bf16
        (["TEST.AMP", "bfloat16"], False, "Results (bfloat16, MODEL.COMPILE auto):"),
    ],
)
def test_results_say_how_they_were_made(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    keys: list[str],
    native: bool,
    told: str,
) -> None:
    monkeypatch.setattr("mask2former.utils.device.cpu_multiplies", lambda dtype: native)
    with caplog.at_level(logging.INFO):
        Evaluating.test(tiny_config(tmp_path, *keys), Seeing())
    assert told in caplog.text
