"""`onnx_runtime.py` runs an exported model without this package, with the results of the model."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import mask2former.export as package
from mask2former.cli import main
from mask2former.export.exporter import ExportSettings, export_model
from mask2former.export.onnx_segmenter import OnnxSegmenter
from mask2former.segmenter import Segmenter
from mask2former.structures.classes import ClassTable

from .small_model import small_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (64, 96)
SOURCE = Path(package.__path__[0]) / "onnx_runtime.py"


def test_it_needs_nothing_else() -> None:
    tree = ast.parse(text := SOURCE.read_text("utf-8"))
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "json", "sys", "pathlib", "typing", "numpy", "onnxruntime", "PIL"}
    assert len(text.splitlines()) <= 180


@pytest.fixture(scope="module", params=["instance", "panoptic", "semantic"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Path]:
    """Return a tiny model, its config and its ONNX file."""
    task = request.param
    model, cfg = small_model(task)
    path = tmp_path_factory.mktemp(task) / "tiny.onnx"
    export_model(model, cfg, table(), path, ExportSettings(size=SIZE, post=task, batch=2), "tiny")
    return model, cfg, path


def table() -> ClassTable:
    return ClassTable(tuple("abcd"), is_thing=(True, True, False, False))


def photo(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.slow
def test_results_are_those_of_the_model(exported: tuple[nn.Module, Any, Path]) -> None:
    model, cfg, path = exported
    segment, ours = OnnxSegmenter(path), Segmenter(model, cfg, classes=table())
    for size in ((64, 96), (50, 96), (64, 70)):  # not resized, but padded
        image = photo(*size)
        a, b = segment(image), ours(image)
        assert a.tasks == b.tasks and a.counts() == b.counts()
        if a.instances is not None:
            assert len(a.instances) and a.instances.names == b.instances.names
            np.testing.assert_allclose(a.instances.scores, b.instances.scores, atol=1e-5)
            assert (a.instances.masks != b.instances.masks).mean() < 1e-3
        elif a.panoptic is not None:
            assert len(a.panoptic)
            assert (a.panoptic.map != b.panoptic.map).mean() < 1e-3
            assert [s.label for s in a.panoptic.segments] == [s.label for s in b.panoptic.segments]
        else:
            assert a.semantic.dtype == b.semantic.dtype
            assert (a.semantic != b.semantic).mean() < 1e-3


@pytest.mark.slow
def test_images_of_another_size(exported: tuple[nn.Module, Any, Path]) -> None:
    segment = OnnxSegmenter(exported[2])
    image = photo(200, 170)
    result = segment(image)
    if result.instances is not None:
        assert result.instances.masks.shape[1:] == (200, 170)
    else:
        shown = result.semantic if result.panoptic is None else result.panoptic.map
        assert shown is not None and shown.shape == (200, 170)
    found = segment.model(image)
    if "boxes" in found:
        for box, mask in zip(found["boxes"].astype(int), found["masks"], strict=True):
            outside = mask.copy()
            outside[box[1] : box[3], box[0] : box[2]] = False
            assert not outside.any()
        assert not len(segment.model(image, score_threshold=1.0)["scores"])
    with pytest.raises(ValueError, match="no threshold"):
        segment.model(image, score=0.1)
    with pytest.raises(ValueError, match="fixed size"):
        segment(image, min_size=100)


@pytest.mark.slow
def test_the_command(exported: tuple[nn.Module, Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photo(60, 90)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    command = ["predict", str(tmp_path / "a.png"), "--model", str(exported[2]), "--output", str(out)]
    assert main(command) == 0
    assert (out / "a.png").is_file() and json.loads((out / "results.json").read_text())["images"]
    capsys.readouterr()
    for precision in (["--amp"], ["--amp", "off"], ["--amp", "float16"]):
        assert main([*command, *precision]) == 2
        assert "--amp has no effect" in capsys.readouterr().err


def test_files_that_are_missing_or_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.onnx"
    with pytest.raises(FileNotFoundError, match=r"m\.onnx does not exist"):
        OnnxSegmenter(file)
    file.write_bytes(b"no model")
    with pytest.raises(FileNotFoundError, match=r"m\.json does not exist"):
        OnnxSegmenter(file)
    file.with_suffix(".json").write_text("{}")
    with pytest.raises(ValueError, match=r"m\.(onnx|json)"):
        OnnxSegmenter(file)
    with pytest.raises(ValueError, match="runs on auto, cpu, cuda"):
        OnnxSegmenter(file, device="mps")
    Image.fromarray(photo(8, 8)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.png"), "--model", str(file)]) == 2
    assert "m.onnx" in capsys.readouterr().err
