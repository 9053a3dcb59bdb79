"""`mask2former convert`: file formats, and backbones of either family; the rest is tested with the tools."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mask2former.cli import main


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.chdir(tmp_path)
    state = {"a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "a.count": torch.tensor(3)}
    torch.save({"model": state, "optimizer": {"step": 1}}, "in.pth")
    return state


def test_there_and_back(weights: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "file", "in.pth", "out.safetensors"]) == 0
    assert "2 weights written to out.safetensors" in capsys.readouterr().out
    assert main(["convert", "file", "out.safetensors", "back.pth"]) == 0
    back = torch.load("back.pth", weights_only=True)
    assert set(back) == {"model"}
    for state in (load_file("out.safetensors"), back["model"]):
        assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth"])
def test_precision(weights: dict[str, torch.Tensor], name: str) -> None:
    assert main(["convert", "file", "in.pth", name, "--dtype", "float16"]) == 0
    state = load_file(name) if name.endswith("safetensors") else torch.load(name, weights_only=True)["model"]
    assert state["a.weight"].dtype == torch.float16 and state["a.count"].dtype == torch.int64


def test_a_backbone_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.ones(2, 3, 1, 1), "layer1.0.conv1.weight": torch.ones(1)}, "resnet.pth")
    assert main(["convert", "backbone", "resnet.pth", "R.pkl"]) == 0
    assert pickle.loads(Path("R.pkl").read_bytes())["__author__"] == "torchvision"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["file", "in.pth", "out.bin"], "OUT must end with .safetensors or .pth"),
        (["file", "in.pth", "in.pth"], "is the input itself"),
        (["file", "gone.pth", "out.pth"], "gone.pth"),
        (["backbone", "in.pth", "R.pkl"], "a torchvision ResNet or a Swin Transformer"),
        (["pack", "gone", "out"], "gone is not a training output directory"),
        (["to-hf", "in.pth", "out"], "needs --config-file"),
        (["from-hf", "gone", "out"], "gone"),
        ([], "KIND"),
    ],
)
def test_mistakes_are_explained(
    weights: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["convert", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and not Path("out.pth").exists()
