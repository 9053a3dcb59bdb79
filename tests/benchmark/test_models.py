"""Inference and training of a small model, and what they are compared with."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from mask2former.benchmark import inference, training
from mask2former.benchmark.synthetic import batch_of, build, config_of
from mask2former.structures.mask_bits import MaskBits

from ..modeling.tiny_models import TINY

CONFIG = "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"


def arguments(**changes: Any) -> argparse.Namespace:
    """Return the arguments of a short run on the CPU."""
    found: dict[str, Any] = {"device": "cpu", "size": (64, 64), "source": None, "batch": 1, "bf16": False}
    found |= {"dense": False, "uneven": False, "objects": 2, "compile": None, "compare": None, "repeats": 1}
    return argparse.Namespace(**found | {"opts": [str(x) for x in TINY]} | changes)


@pytest.mark.slow
def test_rows_of_inference_beside_another_implementation() -> None:
    pytest.importorskip("transformers")
    report = inference.run(arguments(compare="huggingface", dense=True, source=(40, 50)), CONFIG)
    assert [row.name for row in report.rows] == [
        "network",
        "network and results",
        "Segmenter",
        "Hugging Face, network",
        "Hugging Face, network and results",
    ]
    network, _, _, theirs, _ = report.rows
    assert theirs.value("ratio") == theirs.value("time") / network.value("time")
    assert network.value("floor of FLOPs") > 0 and network.value("floor of bytes") > 0
    assert report.settings["source"] == [40, 50] and report.settings["compile"] == "auto"


@pytest.mark.slow
def test_rows_of_training() -> None:
    pytest.importorskip("transformers")
    report = training.run(arguments(compare="huggingface"), CONFIG)
    names = ["forward, losses, backward", "training step", "training steps in a row"]
    assert [row.name for row in report.rows] == [*names, *(f"Hugging Face, {name}" for name in names)]
    assert report.settings["objects"] == 2
    rows = {row.name: {figure.name for figure in row.figures} for row in report.rows}
    floors = {"floor of FLOPs", "floor of bytes", "share of the floor"}
    assert rows["training step"] == {"time", "images", "peak memory"} | floors
    assert rows["training steps in a row"] == {"time", "images"} | floors
    assert rows["Hugging Face, training steps in a row"] == {"time", "images", "ratio"}
    steps, theirs = report.rows[2], report.rows[5]
    assert theirs.value("ratio") == theirs.value("time") / steps.value("time")


def test_a_step_changes_the_weights() -> None:
    args = arguments()
    cfg = config_of(args, CONFIG)
    model = build(cfg, train=True)
    before = [p.detach().clone() for p in model.parameters()]
    training.training_step(args, cfg, model, batch_of(args, cfg))()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Reader(torch.nn.Module):
    """Keeps the samples that it gets, as a model on a GPU would."""

    reads_mask_bits = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.samples: list[Any] = []

    def forward(self, samples: list[Any]) -> Any:
        self.samples += samples
        return {"loss": self.weight}


def test_a_step_gets_masks_as_data_workers_send_them() -> None:
    args, model = arguments(), Reader()
    cfg = config_of(args, CONFIG)
    batch = batch_of(args, cfg)
    training.training_step(args, cfg, model, batch)()
    for sample, given in zip(model.samples, batch, strict=True):
        masks = sample["instances"].gt_masks
        assert isinstance(masks, MaskBits) and torch.equal(masks.unpacked(), given["instances"].gt_masks)


def test_dense_models_are_sure_of_their_classes() -> None:
    cfg = config_of(arguments(), CONFIG)
    batch = batch_of(arguments(), cfg)
    scores = []
    for dense in (False, True):
        model: Any = build(cfg, dense=dense)
        with torch.inference_mode():
            logits = model.sem_seg_head(model.backbone(model.preprocess(batch).tensor))["pred_logits"]
        scores.append(logits.softmax(-1).max(-1).values.mean().item())
    assert scores[0] < 0.2 and scores[1] > 0.8


def test_results_are_copied_completely() -> None:
    cfg = config_of(arguments(), CONFIG)
    model: Any = build(cfg, dense=True)
    with torch.inference_mode():
        found = inference.to_host(model(batch_of(arguments(), cfg))[0])
    assert found["sem_seg"].shape[1:] == (64, 64) and found["panoptic_seg"][0].shape == (64, 64)
    assert set(found["instances"]) == {"pred_masks", "pred_boxes", "scores", "pred_classes"}
    assert all(isinstance(value, torch.Tensor) for value in found["instances"].values())


def test_uneven_batches_differ_from_image_to_image() -> None:
    args = arguments(uneven=True, batch=6, objects=10)
    counts = [len(sample["instances"]) for sample in batch_of(args, config_of(args, CONFIG))]
    assert len(set(counts)) > 1 and all(1 <= count <= 20 for count in counts)


def test_compile_is_a_config_key() -> None:
    assert config_of(arguments(compile="graph"), CONFIG).MODEL.COMPILE == "graph"
    assert config_of(arguments(), CONFIG).MODEL.COMPILE == "auto"


@pytest.mark.gpu
@pytest.mark.parametrize("run", [inference.run, training.run])
def test_rows_on_a_gpu(run: Any) -> None:
    options = [*TINY, "MODEL.DEVICE", "cuda"]
    report = run(arguments(device="cuda", bf16=True, repeats=3, opts=[str(x) for x in options]), CONFIG)
    for row in report.rows:
        if row.name == training.STEPS:
            assert {figure.name for figure in row.figures}.isdisjoint({"kernels", "GPU busy", "peak memory"})
            continue
        assert row.value("kernels") > 50 and 0 < row.value("GPU busy") <= 100 and row.value("peak memory") > 0
