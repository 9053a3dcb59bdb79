"""Converted ImageNet backbones give the same outputs in detectron2 and in this project as before."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_resnet_backbone
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from mask2former.checkpoint import load_into
from mask2former.modeling.backbone.swin import D2SwinTransformer

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str) -> ModuleType:
    """Load a script whose name is not a valid module name."""
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TORCHVISION, SWIN = tool("convert-torchvision-to-d2"), tool("convert-pretrained-swin-model-to-d2")


class Model(nn.Module):
    """A backbone under the attribute that meta-architectures use."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


def resnet(depth: int = 50) -> nn.Module:
    """Build a torchvision ResNet whose norms differ from each other."""
    network = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for name, value in network.state_dict().items():
        if re.search(r"(bn\d|downsample\.1)\.", name) and value.is_floating_point():
            value.uniform_(0.5, 1.0)
    return network.eval()


def maps_of(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return res2 ... res5 of a torchvision ResNet."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    maps = {}
    for stage in range(1, 5):
        x = maps[f"res{stage + 1}"] = getattr(network, f"layer{stage}")(x)
    return maps


def detectron2_resnet(depth: int = 50) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if depth == 18:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    from detectron2.layers import ShapeSpec

    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()


@pytest.mark.parametrize("loader", ["detectron2", "this project"])
def test_resnet_computes_the_same(tmp_path: Path, loader: str) -> None:
    network = resnet()
    source, target = tmp_path / "resnet50.pth", tmp_path / "R-50.pkl"
    torch.save(network.state_dict(), source)
    assert TORCHVISION.main([str(source), str(target)]) == 0
    model = Model(detectron2_resnet())
    if loader == "detectron2":
        DetectionCheckpointer(model).load(str(target))
    else:
        assert load_into(model, target).complete
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        actual, expected = model.backbone(image), maps_of(network, image)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))


def test_resnet_file_is_what_detectron2_publishes(tmp_path: Path) -> None:
    source, target = tmp_path / "resnet18.pth", tmp_path / "R-18.pkl"
    network = resnet(18)
    torch.save(network.state_dict(), source)
    assert TORCHVISION.main([str(source), str(target)]) == 0
    checkpoint = pickle.loads(target.read_bytes())
    assert set(checkpoint) == {"model", "__author__", "matching_heuristics"}
    assert checkpoint["__author__"] == "torchvision" and checkpoint["matching_heuristics"] is True
    assert all(type(value) is np.ndarray for value in checkpoint["model"].values())
    expected = {f"backbone.{key}" for key in checkpoint["model"]}
    assert expected == set(Model(detectron2_resnet(18)).state_dict())
    for ours, theirs in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_mean": "bn1.running_mean",
        "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
        "res3.0.shortcut.norm.bias": "layer2.0.downsample.1.bias",
        "res5.1.conv2.norm.weight": "layer4.1.bn2.weight",
    }.items():
        assert np.array_equal(checkpoint["model"][ours], network.state_dict()[theirs].numpy()), ours


def swin_pair() -> tuple[SwinTransformer, D2SwinTransformer]:
    """Build the same architecture in timm and here, with different weights."""
    settings = {"embed_dim": 12, "depths": (2, 2, 2), "num_heads": (2, 2, 4), "window_size": 4}
    theirs = SwinTransformer(img_size=128, num_classes=5, drop_path_rate=0.0, **settings)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    return theirs.eval(), D2SwinTransformer(**settings, out_features=("res2", "res3", "res4")).eval()


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's state dict as in the files that Swin Transformer's authors publish."""

    def name(key: str) -> str:
        key = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        return key.replace("head.fc.", "head.")

    out = {name(key): value for key, value in state.items()}
    out["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 16, 16)
    return out


def stage_outputs(network: SwinTransformer, image: Tensor) -> list[Tensor]:
    x = network.patch_embed(image)
    return [x := layer(x) for layer in network.layers]


@pytest.mark.parametrize("names", ["official", "timm"])
def test_swin_computes_the_same(tmp_path: Path, names: str) -> None:
    theirs, ours = swin_pair()
    source, target = tmp_path / "swin.pth", tmp_path / "swin.pkl"
    state = theirs.state_dict()
    torch.save({"model": official_names(state)} if names == "official" else state, source)
    assert SWIN.main([str(source), str(target)]) == 0

    checkpoint = pickle.loads(target.read_bytes())
    assert checkpoint["__author__"] == "third_party" and checkpoint["matching_heuristics"] is True
    assert not [key for key in checkpoint["model"] if key.startswith(("head", "norm")) or "attn_mask" in key]
    report = load_into(Model(ours), target)
    # The norms of the outputs belong to segmentation; ImageNet files do not have them.
    assert sorted(report.missing) == [f"backbone.norm{i}.{name}" for i in range(3) for name in ("bias", "weight")]
    assert not report.unexpected and not report.reinitialized

    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        actual, expected = ours(image), stage_outputs(theirs, image)
    for i, value in enumerate(expected):
        normalized = nn.functional.layer_norm(value, value.shape[-1:]).permute(0, 3, 1, 2)
        torch.testing.assert_close(actual[f"res{i + 2}"], normalized, rtol=1e-3, atol=1e-4)


def test_swin_of_real_size_has_a_parameter_for_every_weight(tmp_path: Path) -> None:
    state = official_names(timm.create_model("swin_tiny_patch4_window7_224", pretrained=False).state_dict())
    torch.save({"model": state}, tmp_path / "swin.pth")
    assert SWIN.main([str(tmp_path / "swin.pth"), str(tmp_path / "swin.pkl")]) == 0
    expected = {k: tuple(v.shape) for k, v in D2SwinTransformer().state_dict().items()}
    model = pickle.loads((tmp_path / "swin.pkl").read_bytes())["model"]
    assert {key: value.shape for key, value in model.items()}.items() <= expected.items()
    assert all(re.match(r"norm\d\.|.*relative_position_index", key) for key in expected.keys() - model.keys())


def test_half_precision_is_kept_and_bfloat16_widened(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.ones(2, 3, 1, 1).bfloat16(), "layer1.0.conv1.weight": torch.ones(1).half()}
    torch.save(state, tmp_path / "a.pth")
    assert TORCHVISION.main([str(tmp_path / "a.pth"), str(tmp_path / "a.pkl")]) == 0
    model = pickle.loads((tmp_path / "a.pkl").read_bytes())["model"]
    assert model["stem.conv1.weight"].dtype == np.float32 and model["res2.0.conv1.weight"].dtype == np.float16


@pytest.mark.parametrize("module", [TORCHVISION, SWIN])
def test_mistakes_are_explained(module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(source: Path, target: str) -> str:
        assert module.main([str(source), str(tmp_path / target)]) == 1
        assert not list(tmp_path.glob("*.pkl")) and not list(tmp_path.glob(".*.tmp"))
        return capsys.readouterr().err

    assert "checkpoint not found" in message(tmp_path / "nowhere.pth", "out.pkl")
    other = tmp_path / "other.pth"
    torch.save({"encoder.weight": torch.zeros(1)}, other)
    assert "does not hold the weights of" in (text := message(other, "out.pkl")) and "encoder.weight" in text
    assert "must end with .pkl" in message(other, "out.pth")
    partial = tmp_path / "partial.pth"
    partial.write_bytes(other.read_bytes()[:200])
    assert "truncated" in message(partial, "out.pkl")

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("run",)

    evil = tmp_path / "evil.pth"
    torch.save({"model": {"conv1.weight": Evil()}}, evil)
    assert "refused" in message(evil, "out.pkl")
