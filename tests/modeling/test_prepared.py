"""Forms of backbone and head for inference: same results, shared weights, and changes of the originals that count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from mask2former.modeling.backbone.timm import TimmBackbone
from mask2former.modeling.cpu_linear import CpuLinear, prefers_convolution
from mask2former.modeling.prepared import Prepared
from tests.modeling.tiny_models import tiny
from tests.parity.float64 import everything_in_float64

R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
SWIN = "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"
SMALL_RESNET = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
Parts = tuple[nn.Module, nn.Module]


def parts(config: str = R50, *overrides: Any) -> Parts:
    """Return backbone and head with norms that are not the identity, in evaluation mode."""
    torch.manual_seed(0)
    model: Any = tiny(config, *(SMALL_RESNET if config == R50 else ()), *overrides).eval()
    randomize_norms(model)
    return model.backbone, model.sem_seg_head


def randomize_norms(model: nn.Module) -> None:
    """Give all norms with running statistics other values."""
    module: Any
    for module in model.modules():
        if hasattr(module, "running_var"):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.data.uniform_(0.5, 1.5)


def run(backbone: nn.Module, head: nn.Module, size: tuple[int, int] = (64, 96), double: bool = False) -> list[Tensor]:
    """Return class and mask logits of a random image."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    # Mask logits are cast to float32 by name, whose rounding depends on threads and memory formats.
    with torch.no_grad(), everything_in_float64() if double else contextlib.nullcontext():
        outputs = head(backbone(image.double() if double else image))
    return [outputs["pred_logits"], outputs["pred_masks"]]


def features(backbone: nn.Module) -> Tensor:
    """Return the finest map of a random image."""
    with torch.no_grad():
        return backbone(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))["res2"]


def stem(size: int = 3, **options: Any) -> nn.Sequential:
    """Return a backbone that is one convolution with a frozen norm."""
    norm = FrozenBatchNorm2d(4)
    for values in norm.buffers():
        values.uniform_(0.5, 1.5)
    return nn.Sequential(Conv2d(3, 4, size, padding=size // 2, norm=norm, **options))


@pytest.mark.parametrize("config", [R50, SWIN])
def test_double_results_are_the_same(config: str) -> None:
    backbone, head = (part.double() for part in parts(config))
    prepared = Prepared(backbone, head)
    expected = run(backbone, head, double=True)
    for value, other in zip(run(prepared.backbone, prepared.head, double=True), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [R50, SWIN])
def test_stored_casts_are_those_of_autocast(config: str, dtype: torch.dtype) -> None:
    backbone, head = parts(config)
    prepared = Prepared(backbone, head, dtype, fold=False, channels_last=False)
    with torch.autocast("cpu", dtype):
        expected = run(backbone, head)
        for value, other in zip(run(prepared.backbone, prepared.head), expected, strict=True):
            assert torch.equal(value, other)
    stored = {p.dtype for p in prepared.backbone.parameters()}
    assert dtype in stored
    assert dtype in {p.dtype for p in prepared.head.predictor.parameters()}  # type: ignore[union-attr]


def test_norms_are_folded_and_all_else_is_shared() -> None:
    backbone, head = parts()
    prepared = Prepared(backbone, head, channels_last=False)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in prepared.backbone.modules())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())
    assert {id(p) for p in prepared.head.parameters()} == {id(p) for p in head.parameters()}
    assert prepared.head.predictor is not None
    torch.testing.assert_close(features(prepared.backbone), features(backbone), rtol=1e-4, atol=1e-4)


def test_nothing_to_change_is_the_original() -> None:
    backbone, head = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Linear(4, 4))
    prepared = Prepared(backbone, head, channels_last=False)
    assert prepared.backbone is backbone and prepared.head is head


def test_memory_format() -> None:
    backbone = stem()
    prepared = Prepared(backbone, nn.Identity())
    weight: Any = prepared.backbone[0].weight  # type: ignore[index]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.requires_grad
    assert backbone[0].weight.is_contiguous()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("bias", [False, True])
def test_changes_count_after_refresh(bias: bool) -> None:
    backbone = stem(bias=bias)
    prepared = Prepared(backbone, nn.Identity())
    x = torch.randn(2, 3, 8, 8)
    convolution: Any = backbone[0]
    changes: list[Callable[[], Any]] = [
        lambda: convolution.weight.mul_(2),
        lambda: convolution.norm.running_var.add_(1),
        lambda: convolution.norm.bias.add_(1),
        lambda: convolution.weight.data.mul_(2),
        lambda: setattr(convolution, "weight", nn.Parameter(torch.randn(4, 3, 3, 3))),
        lambda: backbone.load_state_dict({k: v + 1 for k, v in backbone.state_dict().items()}),
    ]
    with torch.no_grad():
        for change in changes:
            addresses = [p.data_ptr() for p in prepared.backbone.parameters()]
            change()
            assert prepared.fits()
            with torch.inference_mode():
                prepared.refresh()
            torch.testing.assert_close(prepared.backbone(x), backbone(x), rtol=1e-4, atol=1e-4)
            assert addresses == [p.data_ptr() for p in prepared.backbone.parameters()]


def test_a_form_made_in_inference_mode_can_be_refreshed_outside() -> None:
    backbone = stem()
    with torch.inference_mode():
        prepared = Prepared(backbone, nn.Identity())
    prepared.refresh()


def test_hooks_keep_modules_as_they_are() -> None:
    backbone, head = parts()
    seen: list[nn.Module] = []
    hooked = backbone.get_submodule("res3.0.conv1")
    hooked.register_forward_hook(lambda module, args, output: seen.append(module))
    prepared = Prepared(backbone, head)
    assert prepared.backbone.get_submodule("res3.0.conv1") is hooked
    run(prepared.backbone, prepared.head)
    assert seen == [hooked]


def test_later_hooks_are_noticed() -> None:
    backbone = stem()
    prepared = Prepared(backbone, nn.Identity())
    assert prepared.fits()
    handle = backbone[0].register_forward_hook(lambda *args: None)
    assert not prepared.fits()
    handle.remove()
    assert prepared.fits()
    backbone.double()
    assert not prepared.fits()


def test_later_modes_and_methods_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = stem().eval()
    prepared = Prepared(backbone, nn.Identity())
    backbone[0].train()  # dropout at test time, for example
    assert not prepared.fits()
    backbone[0].eval()
    assert prepared.fits()
    backbone[0]._conv_forward = lambda *args: None  # which `forward` calls
    assert not prepared.fits()
    del backbone[0]._conv_forward
    assert prepared.fits()
    monkeypatch.setattr(type(backbone[0]), "forward", lambda *args: None)
    assert not prepared.fits()


class OtherConvolution(nn.Conv2d):
    """A convolution of another project."""


def test_modules_of_others_are_left_alone() -> None:
    parametrized = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))
    with pytest.warns(FutureWarning):
        hooked = nn.utils.weight_norm(nn.Conv2d(3, 3, 3))
    replaced = nn.Conv2d(3, 3, 3)
    replaced.forward = torch.abs  # type: ignore[method-assign]
    others = [parametrized, hooked, replaced, OtherConvolution(3, 3, 3)]
    backbone = nn.Sequential(*others, nn.Conv2d(3, 3, 3))
    prepared: Any = Prepared(backbone, nn.Identity()).backbone
    assert [a is b for a, b in zip(prepared, backbone, strict=True)] == [True] * 4 + [False]


def test_replaced_methods_of_a_class_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv2d, "forward", lambda self, x: x)
    backbone = stem()
    assert Prepared(backbone, nn.Identity()).backbone is backbone


def test_lists_of_modules() -> None:
    backbone, head = parts()
    form: Any = Prepared(backbone, head).backbone
    stages: Any = [form.get_submodule(name) for name in form.stage_names]
    assert all(a is b for a, b in zip(form.stages, stages, strict=True))
    assert form.stages[0] is not backbone.stages[0]  # type: ignore[index, union-attr]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "tf_efficientnetv2_b0"])
@pytest.mark.parametrize("frozen", [False, True])
def test_timm(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name=name, freeze_norm=frozen).eval()
    randomize_norms(backbone)
    prepared = Prepared(backbone.double(), nn.Identity())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for key, value in backbone(x).items():
            torch.testing.assert_close(prepared.backbone(x)[key], value, rtol=1e-9, atol=1e-9)
    norms = [m for m in prepared.backbone.modules() if hasattr(m, "running_var")]
    assert len(norms) <= 1  # timm's ResNet leaves that of the stem


def test_norms_in_training_are_not_folded() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert Prepared(backbone, nn.Identity(), channels_last=False).backbone[1] is backbone[1]  # type: ignore[index]
    folded: Any = Prepared(backbone.eval(), nn.Identity()).backbone
    assert folded[1] is not backbone[1]
    torch.testing.assert_close(folded(torch.ones(1, 3, 2, 2)), backbone(torch.ones(1, 3, 2, 2)))


def test_linear_layers_of_tokens_run_as_convolutions() -> None:
    backbone, head = parts()
    encoder: Any = Prepared(backbone, head).head.get_submodule("pixel_decoder.transformer.encoder")
    original: Any = head.get_submodule("pixel_decoder.transformer.encoder")
    if prefers_convolution(original.layers[0].linear1.weight):
        assert type(encoder.layers[0].linear1) is CpuLinear
        assert type(encoder.layers[0].self_attn.value_proj) is CpuLinear
    assert type(original.layers[0].linear1) is nn.Linear
    assert encoder.layers[0].linear1.weight is original.layers[0].linear1.weight


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_refresh_in_a_cuda_graph(dtype: torch.dtype | None) -> None:
    backbone, head = (part.cuda() for part in parts())
    prepared = Prepared(backbone, head, dtype)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        prepared.refresh()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prepared.refresh()
    with torch.no_grad():
        for weight in [*backbone.parameters(), *backbone.buffers(), *head.parameters()]:
            weight.mul_(1.5)
    graph.replay()
    torch.cuda.synchronize()
    expected = Prepared(backbone, head, dtype)
    for a, b in ((prepared.backbone, expected.backbone), (prepared.head, expected.head)):
        for value, other in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(value, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_casts_on_a_gpu(dtype: torch.dtype) -> None:
    backbone, head = (part.cuda() for part in parts())
    prepared = Prepared(backbone, head, dtype, fold=False, channels_last=False)
    image = torch.randn(1, 3, 64, 96, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype):
        expected, outputs = head(backbone(image)), prepared.head(prepared.backbone(image))
    for key in ("pred_logits", "pred_masks"):
        assert torch.equal(outputs[key], expected[key])
