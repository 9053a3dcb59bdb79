"""Swin against direct formulas, its caches, and timm models as backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mask2former.modeling.backbone.swin import D2SwinTransformer, WindowAttention, _shift_mask
from mask2former.modeling.backbone.timm import TimmBackbone


def tiny_swin(**options: object) -> D2SwinTransformer:
    settings = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    settings["out_features"] = ("res2", "res3")
    return D2SwinTransformer(**{**settings, **options})  # type: ignore[arg-type]


def test_window_attention_by_the_formula() -> None:
    attention = WindowAttention(8, window_size=3, num_heads=2).eval()
    x = torch.randn(4, 9, 8)
    q, k, v = attention.qkv(x).view(4, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    bias = torch.empty(2, 9, 9)
    for i in range(9):
        for j in range(9):
            dy, dx = i // 3 - j // 3 + 2, i % 3 - j % 3 + 2
            bias[:, i, j] = attention.relative_position_bias_table[dy * 5 + dx]
    weights = (q @ k.transpose(-1, -2) * 4**-0.5 + bias).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(4, 9, 8))
    torch.testing.assert_close(attention(x, None), expected, atol=1e-5, rtol=1e-4)


def test_shift_mask_separates_what_was_not_adjacent() -> None:
    mask = _shift_mask(8, 8, 4, torch.device("cpu"))
    assert mask.shape == (4, 16, 16)
    assert (mask[0] == 0).all()  # the first window holds one region
    # The last window holds four regions of 2 x 2 tokens.
    assert [(row == 0).sum().item() for row in mask[3]] == [4] * 16
    assert [(row == 0).sum().item() for row in mask[1]] == [8] * 16


def test_bias_cache_follows_the_weights() -> None:
    model = tiny_swin().eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first = model(x)["res2"]
        assert torch.equal(first, model(x)["res2"])
        model.layers[0].blocks[0].attn.relative_position_bias_table.normal_()
        changed = model(x)["res2"]
    assert not torch.allclose(first, changed)
    with torch.enable_grad():
        torch.testing.assert_close(model(x)["res2"].detach(), changed, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (37, 53), (64, 30)])
def test_sizes_and_strides(size: tuple[int, int]) -> None:
    features = tiny_swin().eval()(torch.randn(2, 3, *size))
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    assert features["res2"].shape == (2, 12, height, width)
    assert features["res3"].shape == (2, 24, -(-height // 2), -(-width // 2))


def test_batch_of_two_equals_two_of_one() -> None:
    model = tiny_swin().eval()
    x = torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        both = model(x)["res3"]
        each = torch.cat([model(x[i : i + 1])["res3"] for i in range(2)])
    torch.testing.assert_close(both, each, atol=1e-5, rtol=1e-4)


def test_checkpointing_gives_the_same_gradients() -> None:
    plain, saving = tiny_swin(drop_path_rate=0.0), tiny_swin(drop_path_rate=0.0, use_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for model in (plain, saving):
        model.train()(x)["res3"].square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)  # norm0 belongs to res2, which has no loss here
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_absolute_position_is_resized() -> None:
    model = tiny_swin(ape=True, pretrain_img_size=32).eval()
    with torch.no_grad():
        model.absolute_pos_embed.normal_()
        x = torch.randn(1, 3, 48, 40)
        moved = F.interpolate(model.absolute_pos_embed, (12, 10), mode="bicubic", align_corners=False)
        expected = (model.patch_embed(x) + moved).flatten(2).transpose(1, 2)
        seen: list[torch.Tensor] = []
        model.pos_drop.register_forward_hook(lambda m, i, o: seen.append(o))
        model(x)
    torch.testing.assert_close(seen[0], expected)


def test_unknown_output_is_an_error() -> None:
    with pytest.raises(ValueError, match="res9"):
        tiny_swin(out_features=("res9",))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_timm_strides(name: str) -> None:
    model = TimmBackbone(name=name).eval()
    with torch.no_grad():
        features = model(torch.randn(1, 3, 64, 96))
    for i, (key, x) in enumerate(features.items()):
        assert key == f"res{i + 2}"
        stride = 4 * 2**i
        assert x.shape == (1, model.output_shape()[key].channels, 64 // stride, 96 // stride)
        assert model.output_shape()[key].stride == stride


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    source = TimmBackbone(name="resnet18")
    state = {**source.network.state_dict(), "fc.weight": torch.zeros(2, 2)}
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, str(file))
    loaded = TimmBackbone(name="resnet18", weights=str(file))
    assert torch.equal(loaded.network.conv1.weight, source.network.conv1.weight)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_timm_weights_of_the_whole_network(name: str, tmp_path: Path) -> None:
    """Ordinary files of timm name sequences `stages.0`, the feature extractor `stages_0`."""
    source = timm.create_model(name)
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, str(file))
    loaded = TimmBackbone(name=name, weights=str(file)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval().forward_intermediates(x, intermediates_only=True)[-1]
        assert torch.allclose(loaded(x)["res5"], expected, atol=1e-4)


def test_timm_maps_with_channels_last_and_any_size() -> None:
    model = TimmBackbone(name="swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        features = model(torch.randn(1, 3, 96, 160))
    assert {k: tuple(v.shape[1:]) for k, v in features.items()} == {
        f"res{i + 2}": (96 * 2**i, 24 // 2**i, 40 // 2**i) for i in range(4)
    }


def test_timm_builds_only_what_is_used() -> None:
    model = TimmBackbone(name="resnet18", out_features=("res3", "res4"))
    sum(x.mean() for x in model(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_timm_size_that_does_not_fit_names_the_key() -> None:
    with pytest.raises(ValueError, match="SIZE_DIVISIBILITY"), torch.no_grad():
        TimmBackbone(name="maxvit_tiny_tf_224").eval()(torch.randn(1, 3, 192, 256))


def test_timm_errors_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TIMM\.NAME.*resnet18"):
        TimmBackbone(name="resnet81")
    with pytest.raises(FileNotFoundError, match=r"TIMM\.WEIGHTS"):
        TimmBackbone(name="resnet18", weights=str(tmp_path / "absent.pth"))
    file = tmp_path / "wrong.safetensors"
    save_file({"a": torch.zeros(1)}, str(file))
    with pytest.raises(ValueError, match="has no weights for"):
        TimmBackbone(name="resnet18", weights=str(file))


def test_frozen_norms_have_no_parameters() -> None:
    frozen, free = (TimmBackbone(name="resnet18", freeze_norm=f) for f in (True, False))
    count = [sum(p.numel() for p in m.parameters()) for m in (frozen, free)]
    assert count[0] < count[1]


def test_frozen_norms_keep_their_activation() -> None:
    free = TimmBackbone(name="mobilenetv3_small_050").eval()  # timm's batch norms of such networks include it
    frozen = TimmBackbone(name="mobilenetv3_small_050", freeze_norm=True)
    frozen.load_state_dict(free.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for name, expected in free(image).items():
            torch.testing.assert_close(frozen(image)[name], expected)
