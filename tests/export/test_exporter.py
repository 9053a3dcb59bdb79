"""Exported files of every family of models compute what the model computes, and only such files are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former.config import load_config
from mask2former.export import formats
from mask2former.export.check import Difference, ExportError, check_file
from mask2former.export.exporter import Exported, ExportSettings, export_model
from mask2former.export.network import ExportNetwork
from mask2former.structures.classes import ClassTable

from ..modeling.test_graphs import CONFIGS, ONE_LAYER, PARTS, R50, TINY
from ..modeling.tiny_models import CONVOLUTIONS
from .small_model import CLASSES, QUERIES, small_model

VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
# Exporters take time for every operator, so a network comes once to each of them: backbones with one or the other kind
# of what follows them, and four convolutions where a backbone was exported before.
CHEAP = (*ONE_LAYER, *CONVOLUTIONS)
FAMILIES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "R50": (R50, ONE_LAYER),
    "Swin-T": (CONFIGS[2], ONE_LAYER),
    "Swin-T of v1": (CONFIGS[2], PARTS["MaskFormer v1"]),
    "timm of v1": (CONFIGS[1], PARTS["MaskFormer v1"]),
    "timm, selected queries": (CONFIGS[1], (*ONE_LAYER, *PARTS["selected queries"])),
    "two layers": (R50, CONVOLUTIONS),
    "MaskFormer v1": (R50, (*CHEAP, *PARTS["MaskFormer v1"])),
    "video": (VIDEO, CHEAP),
    "selected queries": (R50, (*CHEAP, *PARTS["selected queries"])),
}
SIZE = (64, 96)


def export(family: str, path: Path, **settings: Any) -> tuple[nn.Module, Exported]:
    """Export a tiny model of random weights; return it and the files."""
    config, parts = FAMILIES[family]
    cfg = load_config(config, [*TINY, *parts])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    classes = ClassTable.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    return model, export_model(model, cfg, classes, path, ExportSettings(size=SIZE, **settings), family)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "post", "batch"),
    [
        ("R50", "panoptic", 0),
        ("Swin-T of v1", "instance", 1),
        ("timm, selected queries", "semantic", 0),
        ("video", "instance", 1),
        ("two layers", "semantic", 2),
    ],
)
def test_onnx(family: str, post: str, batch: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    frames = 3 if family == "video" else None
    _, exported = export(family, tmp_path / "m.onnx", post=post, batch=batch, frames=frames)
    assert all(d.logits < 1e-3 and d.pixels < 1e-3 and d.results < 1e-3 for d in exported.differences)
    model = onnx.load(exported.path)
    assert {opset.domain for opset in model.opset_import} == {""} == {node.domain for node in model.graph.node}
    operators = {node.op_type for node in model.graph.node}
    assert ("GridSample" in operators) == (not family.endswith("v1"))
    info = json.loads(exported.description.read_text("utf-8"))
    assert (info["input"]["height"], info["input"]["width"], info["input"]["frames"]) == (*SIZE, frames)
    assert info["post"] == post and info["input"]["dynamic_batch"] == (batch == 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.onnx"]
    if batch == 0:
        _runs_with_any_batch(exported.path, {"panoptic": "segment_map", "semantic": "labels"}[post])


def _runs_with_any_batch(path: Path, output: str) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.randn(count, 3, *SIZE).numpy()
        zero = torch.tensor(0.0).numpy()
        inputs = {"images": images, "valid_size": torch.tensor([SIZE] * count).numpy()}
        inputs |= {"object_mask_threshold": zero, "overlap_threshold": zero}
        named = {entry.name for entry in session.get_inputs()}
        (found,) = session.run([output], {name: value for name, value in inputs.items() if name in named})
        assert found.shape[0] == count and found.shape[-2:] == SIZE


@pytest.mark.slow
def test_logits_of_any_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model, cfg = small_model("semantic")
    settings = ExportSettings(size=SIZE, batch=0, post="none")
    exported = export_model(model, cfg, ClassTable.numbered(CLASSES), tmp_path / "m.onnx", settings, "small")
    session = pytest.importorskip("onnxruntime").InferenceSession(
        str(exported.path), providers=["CPUExecutionProvider"]
    )
    for count in (1, 3):
        (masks,) = session.run(["mask_logits"], {"images": torch.randn(count, 3, *SIZE).numpy()})
        assert masks.shape == (count, QUERIES, SIZE[0] // 4, SIZE[1] // 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family", "post"),
    [
        ("torch_export", "two layers", "instance"),
        ("torch_export", "video", "instance"),
        ("torch_export", "selected queries", "none"),
        ("torchscript", "Swin-T", "instance"),
        ("torchscript", "MaskFormer v1", "instance"),
        ("torchscript", "selected queries", "instance"),
    ],
)
def test_formats_of_pytorch(kind: str, family: str, post: str, tmp_path: Path) -> None:
    suffix = formats.FORMATS[kind].suffix
    frames = 2 if family == "video" else None
    _, exported = export(family, tmp_path / f"m{suffix}", format=kind, post=post, frames=frames)
    assert all(d.logits < 1e-5 and d.results == 0 for d in exported.differences)


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    _, exported = export("timm of v1", tmp_path / "m.onnx", half=True)
    kinds = {tensor.data_type for tensor in onnx.load(exported.path).graph.initializer}
    assert {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16} <= kinds
    assert json.loads(exported.description.read_text("utf-8"))["precision"] == "float16 backbone"


@pytest.mark.slow
def test_aoti(tmp_path: Path) -> None:
    _, exported = export("MaskFormer v1", tmp_path / "m.aoti.pt2", format="aoti", post="none")
    assert all(d.logits < 1e-3 for d in exported.differences)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["torch_export", "aoti", "torchscript"])
def test_files_for_cuda(kind: str, tmp_path: Path) -> None:
    config, parts = FAMILIES["R50"]
    cfg = load_config(config, [*TINY, *parts, "MODEL.DEVICE", "cuda"])
    model = build_model(cfg).eval()
    classes = ClassTable.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    path = tmp_path / f"m{formats.FORMATS[kind].suffix}"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exported = export_model(model, cfg, classes, path, ExportSettings(kind, SIZE, post="panoptic"), "tiny")
    assert all(d.logits < 1e-3 for d in exported.differences)


# ------------------------------------------------------------------ refusals, without an exporter
def wrong(network: ExportNetwork, inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs = list(network(*inputs))
    outputs[-1] = outputs[-1] * 1.01
    return outputs


def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(network: ExportNetwork, inputs: Sequence[Tensor], path: Path, dynamic: bool) -> None:
        path.write_bytes(b"x")

    fake = formats.Format(".onnx", write, lambda path, network: lambda inputs: wrong(network, inputs))
    monkeypatch.setitem(formats.FORMATS, "onnx", fake)
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(ExportError, match=r"tolerance 0\.001, so it was not kept: logits 1\.0e-02"):
        export("MaskFormer v1", tmp_path / "m.onnx", post="semantic")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "old"


def test_two_of_three_inputs_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Difference(1e-6, 0.0, 0.0), Difference(float("nan"), 0.0, 0.0)
    for listed, expected in (([good, good], 2), ([good, bad, good], 3), ([bad, good, bad], 0), ([bad, bad], 0)):
        turns = iter(listed)
        monkeypatch.setattr("mask2former.export.check.compare", lambda *_, turns=turns: next(turns))
        monkeypatch.setattr("mask2former.export.check.example_inputs", lambda *_: ())
        network: Any = None
        if expected:
            assert len(check_file(network, network, (), torch.device("cpu"), 1e-3)) == expected
        else:
            with pytest.raises(ExportError):
                check_file(network, network, (), torch.device("cpu"), 1e-3)


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 32, such as 64 128"):
        config, _ = FAMILIES["MaskFormer v1"]
        cfg = load_config(config, [*TINY, *FAMILIES["MaskFormer v1"][1]])
        classes = ClassTable.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        export_model(build_model(cfg), cfg, classes, tmp_path / "m.onnx", ExportSettings(size=(64, 100)), "m")
    with pytest.raises(ValueError, match="no model of mask classification"):
        ExportNetwork(nn.Linear(1, 1), "none")
    with pytest.raises(ValueError, match="an image model has no frames"):
        export("MaskFormer v1", tmp_path / "m.onnx", frames=2)
    with pytest.raises(ValueError, match="instances only"):
        export("video", tmp_path / "m.onnx", frames=2, post="panoptic")
    with pytest.raises(ValueError, match="fp16 is for ONNX only"):
        ExportSettings(format="aoti", half=True)
    with pytest.raises(ValueError, match="format must be one of"):
        ExportSettings(format="tensorrt")


def test_an_overridden_result_is_not_exported() -> None:
    config, parts = FAMILIES["MaskFormer v1"]
    model = build_model(load_config(config, [*TINY, *parts]))
    setattr(model, "semantic_inference", lambda *_: None)  # noqa: B010 (mypy knows methods)
    ExportNetwork(model, "instance")
    with pytest.raises(ValueError, match="overrides semantic_inference"):
        ExportNetwork(model, "semantic")


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_instances_are_scored_by_predicted_quality(power: float) -> None:
    options = ["MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True, "MODEL.MASK_FORMER.MASK_QUALITY.POWER", power]
    torch.manual_seed(0)
    model = build_model(load_config(R50, [*TINY, *CHEAP, *options])).eval()
    model.semantic_on = model.panoptic_on = False
    model.instance_on = True
    network, image = ExportNetwork(model, "instance"), torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    assert network.logit_names == ("class_logits", "mask_logits", "quality_logits")
    with torch.no_grad():
        expected = model([{"image": image}])[0]["instances"]
        images = model.preprocess([{"image": image}]).tensor
        outputs = network(images, torch.tensor([[64, 96]]), torch.tensor(0.0))
        program = torch.export.export(network, (images, torch.tensor([[64, 96]]), torch.tensor(0.0)))
        exported = program.module()(images, torch.tensor([[64, 96]]), torch.tensor(0.0))
    found = dict(zip(network.output_names, outputs, strict=True))
    assert found["quality_logits"].shape == found["class_logits"].shape[:2]
    torch.testing.assert_close(found["scores"][0, : len(expected)], expected.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(exported[0], found["scores"], atol=1e-5, rtol=1e-4)


def test_quality_is_among_the_logits_of_other_results() -> None:
    model = build_model(load_config(R50, [*TINY, *CHEAP, "MODEL.MASK_FORMER.MASK_QUALITY.ENABLED", True])).eval()
    images, size, zero = torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]]), torch.tensor(0.0)
    for post, others in (("none", ()), ("panoptic", (size, zero, zero)), ("semantic", (size,))):
        network = ExportNetwork(model, post)
        assert len(network(images, *others)) == len(network.output_names)
        assert network.output_names[-3:] == ("class_logits", "mask_logits", "quality_logits")
