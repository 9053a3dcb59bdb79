from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.checkpointing import PARTS, checkpoint_parts
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnTransformerEncoderLayer
from tests.modeling.tiny_models import clip, record, tiny
from tests.parity.float64 import everything_in_float64

RANDOM = ("MODEL.MASK_FORMER.DROPOUT", 0.3)  # dropout draws the same numbers again
CASES = {
    "resnet": (
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
        [record(64, 64, 3, 133), record(64, 64, 0)],
    ),
    "swin": (
        "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml",
        ("MODEL.SWIN.DROP_PATH_RATE", 0.4),
        [record(64, 64, 3, 150)],
    ),
    "swin that checkpoints itself": (
        "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml",
        ("MODEL.SWIN.USE_CHECKPOINT", True),
        [record(64, 64, 3, 150)],
    ),
    "timm": (
        "nuclei/maskformer2_efficientnet_lite0.yaml",
        ("MODEL.TIMM.NAME", "mobilenetv3_small_050"),
        [record(64, 64, 3)],
    ),
    "clips": (
        "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml",
        (),
        [clip(64, 64, 2, 3, 40)],
    ),
}


def pair(config: str, *overrides: Any, parts: Any = tuple(PARTS)) -> tuple[nn.Module, nn.Module]:
    """A model in training mode, and a copy with checkpointing."""
    torch.manual_seed(0)
    plain = tiny(config, *RANDOM, *overrides).train()
    other = copy.deepcopy(plain)
    checkpoint_parts(other, parts)
    return plain, other


def step(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Losses, gradients and buffers after one pass."""
    torch.manual_seed(1)
    losses = model(copy.deepcopy(batch))
    sum(losses.values()).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    after = {"random state": torch.get_rng_state().double()}
    return {**losses, **gradients, **dict(model.named_buffers()), **after}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses_gradients_and_statistics_are_the_same(case: Any) -> None:
    config, overrides, batch = case
    with everything_in_float64():
        plain, checkpointed = (step(model.double(), batch) for model in pair(config, *overrides))
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_keeps_less(part: str) -> None:
    config, overrides, batch = CASES["resnet"]

    def kept(model: nn.Module) -> int:
        sizes: list[int] = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(copy.deepcopy(batch))
        return sum(sizes)

    plain, checkpointed = pair(config, *overrides, parts=[part])
    assert kept(checkpointed) < kept(plain)


def test_autocast_is_that_of_the_first_pass() -> None:
    config, overrides, batch = CASES["timm"]
    plain, checkpointed = pair(config, *overrides)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(copy.deepcopy(batch))
        sum(losses.values()).backward()
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert torch.equal(one.grad, other.grad), name


def test_names_hooks_and_overrides_stay() -> None:
    class Louder(MSDeformAttnTransformerEncoderLayer):
        def forward_ffn(self, src: Tensor) -> Tensor:
            return 2 * super().forward_ffn(src)

    config, overrides, batch = CASES["timm"]
    torch.manual_seed(0)
    plain = tiny(config, *overrides).train()
    plain.sem_seg_head.pixel_decoder.transformer.encoder.layers[0].__class__ = Louder
    before = copy.deepcopy(plain)
    checkpointed = copy.deepcopy(plain)
    checkpoint_parts(checkpointed, PARTS)
    checkpoint_parts(checkpointed, PARTS)  # a second time changes nothing
    assert list(checkpointed.state_dict()) == list(plain.state_dict()) and repr(checkpointed) == repr(plain)
    layer = "sem_seg_head.predictor.transformer_ffn_layers.1"
    outputs = []
    for model in (plain, checkpointed):
        module = model.get_submodule(layer)
        module.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
        module.register_forward_hook(lambda module, inputs, output: 0.5 * output)
        outputs.append(step(model, batch))
    unhooked = step(before, batch)
    for name, value in outputs[0].items():
        torch.testing.assert_close(outputs[1][name], value, msg=name)
    assert not torch.allclose(outputs[0]["loss_mask"], unhooked["loss_mask"])


def test_models_are_copied_and_pickled() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)))
    model = nn.ModuleDict({"backbone": model})
    checkpoint_parts(model, ["backbone"])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied["backbone"][0]) is type(model["backbone"][0]) is not nn.Sequential
        x = torch.ones(1, 2)
        assert torch.equal(copied["backbone"](x), model["backbone"](x))


def test_evaluation_is_not_changed() -> None:
    config, overrides, batch = CASES["timm"]
    plain, checkpointed = pair(config, *overrides)
    with torch.no_grad():
        results = [model.eval()([{"image": batch[0]["image"]}])[0]["instances"] for model in (plain, checkpointed)]
    assert torch.equal(results[0].scores, results[1].scores)


def test_a_model_without_the_part() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.CHECKPOINTING names 'pixel_decoder'"):
        checkpoint_parts(nn.Linear(3, 3), ["pixel_decoder"])


def test_a_part_without_blocks_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Module()
    model.backbone = nn.Linear(3, 3)
    checkpoint_parts(model, ["backbone"])
    assert "no effect on backbone" in caplog.text
