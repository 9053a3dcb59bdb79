"""Parts that other programs import, subclass and replace: pixel decoders, deformable attention, Swin, DETR's layers."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from mask2former.modeling.backbone.swin import (
    BasicLayer,
    D2SwinTransformer,
    Mlp,
    PatchEmbed,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from mask2former.modeling.pixel_decoder.fpn import (
    BasePixelDecoder,
    TransformerEncoderOnly,
    TransformerEncoderPixelDecoder,
    build_pixel_decoder,
)
from mask2former.modeling.pixel_decoder.msdeformattn import (
    MSDeformAttnPixelDecoder,
    MSDeformAttnTransformerEncoder,
    MSDeformAttnTransformerEncoderLayer,
    MSDeformAttnTransformerEncoderOnly,
)
from mask2former.modeling.pixel_decoder.ops.functions import MSDeformAttnFunction
from mask2former.modeling.pixel_decoder.ops.functions.ms_deform_attn_func import ms_deform_attn_core_pytorch
from mask2former.modeling.pixel_decoder.ops.modules import MSDeformAttn
from mask2former.utils.misc import NestedTensor, is_dist_avail_and_initialized, nested_tensor_from_tensor_list

from .client_models import batch, client_config, client_model, shapes

ROOT = Path(__file__).parents[2]
SWIN = "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"
INPUT = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in range(2, 6)}
SMALL: dict[str, Any] = {"conv_dim": 32, "mask_dim": 16, "transformer_enc_layers": 2, "transformer_nheads": 4}
SIZES = [(4, 4), (2, 2)]
LEVELS, STARTS = torch.tensor(SIZES), torch.tensor([0, 16])


def maps(batch: int = 1) -> dict[str, Tensor]:
    return {name: torch.randn(batch, s.channels, 64 // s.stride, 64 // s.stride) for name, s in INPUT.items()}


def decoder(cls: type[MSDeformAttnPixelDecoder] = MSDeformAttnPixelDecoder) -> MSDeformAttnPixelDecoder:
    torch.manual_seed(0)
    built = cls(INPUT, **SMALL).eval()
    for layer in built.transformer.encoder.layers:  # at first no place depends on the query
        nn.init.normal_(layer.self_attn.sampling_offsets.weight)
    return built


# --- pixel decoders ---


def test_attributes_of_the_pixel_decoder() -> None:
    p = build_pixel_decoder(client_config(), {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in range(2, 6)})
    assert isinstance(p, MSDeformAttnPixelDecoder)
    assert p.in_features == ["res2", "res3", "res4", "res5"]
    assert p.feature_strides == [4, 8, 16, 32] and p.feature_channels == [16, 24, 32, 40]
    assert p.transformer_in_features == ["res3", "res4", "res5"] and p.transformer_num_feature_levels == 3
    assert p.transformer_in_channels == [24, 32, 40] and p.transformer_feature_strides == [8, 16, 32]
    assert p.common_stride == 4 and p.num_fpn_levels == 1 and p.maskformer_num_feature_levels == 3
    assert [x[0].in_channels for x in p.input_proj] == [40, 32, 24]
    assert p.lateral_convs == [p.adapter_1] and p.output_convs == [p.layer_1]
    assert shapes(p.pe_layer(torch.rand(2, 3, 4, 5))) == (2, 32, 4, 5)
    assert not any(name.startswith(("lateral_convs", "output_convs", "pe_layer")) for name in p.state_dict())


def test_attributes_of_the_pyramids() -> None:
    for cls in (BasePixelDecoder, TransformerEncoderPixelDecoder):
        settings = SMALL if cls is TransformerEncoderPixelDecoder else {"conv_dim": 32, "mask_dim": 16}
        p = cls(INPUT, **settings)
        assert p.in_features == ["res2", "res3", "res4", "res5"] and p.feature_channels == [8, 12, 16, 20]
        assert p.lateral_convs == [None, p.adapter_3, p.adapter_2, p.adapter_1]
        assert p.output_convs == [p.layer_4, p.layer_3, p.layer_2, p.layer_1]
        p.maskformer_num_feature_levels = 2
        assert len(p.forward_features(maps())[2]) == 2


def test_attributes_of_the_pixel_decoder_act() -> None:
    p, x = decoder(), maps()
    before = p.forward_features(x)
    p.maskformer_num_feature_levels = 4
    assert shapes(p.forward_features(x)[2]) == [(1, 32, 2, 2), (1, 32, 4, 4), (1, 32, 8, 8), (1, 32, 16, 16)]
    p.lateral_convs = [nn.Sequential(p.lateral_convs[0], nn.ReLU())]
    assert not torch.allclose(p.forward_features(x)[0], before[0])

    class NoPosition(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return torch.zeros(x.shape[0], 32, *x.shape[-2:])

    p.pe_layer = NoPosition()
    assert not torch.allclose(p.forward_features(x)[1], before[1])


def test_constructor_with_the_published_keywords() -> None:
    class Mine(MSDeformAttnPixelDecoder):
        @configurable
        def __init__(  # type: ignore[no-untyped-def]
            self,
            input_shape,
            *,
            transformer_dropout,
            transformer_nheads,
            transformer_dim_feedforward,
            transformer_enc_layers,
            conv_dim,
            mask_dim,
            norm=None,
            transformer_in_features,
            common_stride,
        ):
            super().__init__(
                input_shape,
                transformer_dropout=transformer_dropout,
                transformer_nheads=transformer_nheads,
                transformer_dim_feedforward=transformer_dim_feedforward,
                transformer_enc_layers=transformer_enc_layers,
                conv_dim=conv_dim,
                mask_dim=mask_dim,
                norm=norm,
                transformer_in_features=transformer_in_features,
                common_stride=common_stride,
            )

    mask_features, encoded, levels = Mine(client_config(), INPUT).eval().forward_features(maps())
    assert mask_features.shape == (1, 32, 16, 16) and encoded.shape == (1, 32, 2, 2) and len(levels) == 3


def test_constructor_with_any_keyword() -> None:
    class Mine(MSDeformAttnPixelDecoder):
        @configurable
        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)

    p = Mine(client_config(), INPUT)
    assert p.in_features == ["res2", "res3", "res4", "res5"] and len(p.lateral_convs) == 1


def test_copies_use_their_own_convolutions() -> None:
    for p in (decoder(), BasePixelDecoder(INPUT, conv_dim=32, mask_dim=16)):
        copied = copy.deepcopy(p)
        assert copied.lateral_convs[-1] is copied.adapter_1 is not p.adapter_1
        assert copied.output_convs[-1] is copied.layer_1


def test_norm_may_be_none() -> None:
    assert BasePixelDecoder(INPUT, conv_dim=32, mask_dim=16, norm=None).layer_1.bias is not None


class Rewritten(MSDeformAttnPixelDecoder):
    """`forward_features` written anew on the parts, as other projects do."""

    def forward_features(self, features: Any) -> Any:
        names = self.transformer_in_features[::-1]
        sources = [self.input_proj[i](features[name]) for i, name in enumerate(names)]
        y, sizes, starts = self.transformer(sources, [self.pe_layer(features[name]) for name in names])
        ends = [*starts[1:], torch.tensor(y.shape[1])]
        parts = [y[:, a:b].transpose(1, 2) for a, b in zip(starts, ends, strict=True)]
        out = [part.view(y.shape[0], -1, size[0], size[1]) for part, size in zip(parts, sizes, strict=True)]
        for i, name in enumerate(self.in_features[: self.num_fpn_levels][::-1]):
            lateral = self.lateral_convs[i](features[name])
            up = F.interpolate(out[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            out.append(self.output_convs[i](lateral + up))
        return self.mask_features(out[-1]), out[0], out[: self.maskformer_num_feature_levels]


def test_forward_features_written_anew() -> None:
    x = maps(2)
    expected, found = decoder().forward_features(x), decoder(Rewritten).forward_features(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["layer", "attention", "points", "hook"])
def test_overridden_parts_of_the_encoder_get_the_usual_arguments(kind: str) -> None:
    """They see tensors, and the results are the same."""
    seen: list[Any] = []

    class Layer(MSDeformAttnTransformerEncoderLayer):
        def forward(self, src, pos, reference_points, spatial_shapes, level_start_index, padding_mask=None):  # type: ignore[no-untyped-def]
            seen.append((reference_points, spatial_shapes, level_start_index))
            return super().forward(src, pos, reference_points, spatial_shapes, level_start_index, padding_mask)

    class Attention(MSDeformAttn):
        def forward(self, query, points, tokens, sizes, starts, mask=None):  # type: ignore[no-untyped-def]
            seen.append((points, sizes, starts))
            return super().forward(query, points, tokens, sizes, starts, mask)

    class Encoder(MSDeformAttnTransformerEncoder):
        @staticmethod
        def get_reference_points(spatial_shapes, valid_ratios, device):  # type: ignore[no-untyped-def]
            points = MSDeformAttnTransformerEncoder.get_reference_points(spatial_shapes, valid_ratios, device)
            seen.append((points, spatial_shapes, torch.tensor([0, 4, 20])))
            return points

    p, x = decoder(), maps(2)
    expected = p.forward_features(x)
    encoder = p.transformer.encoder
    if kind == "layer":
        encoder.layers[1].__class__ = Layer
    elif kind == "attention":
        encoder.layers[1].self_attn.__class__ = Attention
    elif kind == "points":
        encoder.__class__ = Encoder
    else:
        encoder.layers[1].self_attn.register_forward_pre_hook(lambda module, args: seen.append((args[1], *args[3:5])))
    found = p.forward_features(x)
    points, sizes, starts = seen[0]
    assert (
        points.shape == (2, 84, 3, 2) and sizes.tolist() == [[2, 2], [4, 4], [8, 8]] and starts.tolist() == [0, 4, 20]
    )
    torch.testing.assert_close(found, expected)


def test_encoders_have_their_usual_constructors() -> None:
    layer = MSDeformAttnTransformerEncoderLayer(d_model=32, d_ffn=16, dropout=0.0, n_levels=2, n_heads=4, n_points=2)
    encoder = MSDeformAttnTransformerEncoder(layer, 2).eval()
    x, ratios = torch.rand(2, 20, 32), torch.ones(2, 2, 2)
    out = encoder(x, LEVELS, STARTS, ratios, torch.rand(2, 20, 32), torch.zeros(2, 20, dtype=torch.bool))
    assert out.shape == (2, 20, 32) and encoder.num_layers == 2
    joint = MSDeformAttnTransformerEncoderOnly(d_model=32, nhead=4, num_encoder_layers=1, num_feature_levels=2)
    levels = [torch.rand(2, 32, *size) for size in SIZES]
    memory, sizes, starts = joint(levels, levels)
    assert memory.shape == (2, 20, 32) and torch.equal(sizes, LEVELS) and torch.equal(starts, STARTS)
    one = TransformerEncoderOnly(d_model=32, nhead=4, num_encoder_layers=1, dim_feedforward=16).eval()
    padded = torch.zeros(2, 4, 4, dtype=torch.bool)
    padded[:, 3:] = True
    changed = levels[0].clone()
    changed[:, :, 3:] += 1
    first, second = one(levels[0], padded, levels[0]), one(changed, padded, levels[0])
    assert first.shape == (2, 32, 4, 4)
    torch.testing.assert_close(first[:, :, :3], second[:, :, :3])


def test_an_overridden_ratio_is_called() -> None:
    class Lower(MSDeformAttnTransformerEncoderOnly):
        """Takes the lower half of each image for padding."""

        def get_valid_ratio(self, mask: Tensor) -> Tensor:
            assert mask.dtype == torch.bool and not mask.any()
            mask[:, mask.shape[1] // 2 :] = True
            return super().get_valid_ratio(mask)

    kind = {"d_model": 32, "nhead": 4, "num_encoder_layers": 1, "num_feature_levels": 2}
    joint, lower = MSDeformAttnTransformerEncoderOnly(**kind).eval(), Lower(**kind).eval()
    lower.load_state_dict(joint.state_dict())
    levels = [torch.rand(2, 32, *size) for size in SIZES]
    seen: list[Tensor] = []
    for each in (joint, lower):
        each.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
        each(levels, levels)
    assert torch.equal(seen[0], torch.ones(2, 2, 2))
    assert torch.equal(seen[1], torch.tensor([1.0, 0.5]).expand(2, 2, 2))  # of width and height


def test_pixel_decoders_take_targets() -> None:
    decoder, x = BasePixelDecoder(INPUT, conv_dim=32, mask_dim=16), maps(2)
    assert torch.equal(decoder(x, targets=None)[0], decoder.forward_features(x)[0])


def test_valid_ratios_stretch_reference_points() -> None:
    points = MSDeformAttnTransformerEncoder.get_reference_points(
        LEVELS, torch.tensor([[[0.5, 1.0], [1.0, 0.5]]]), "cpu"
    )
    assert points.shape == (1, 20, 2, 2)
    assert points[0, 0].tolist() == [[0.125, 0.125], [0.25, 0.0625]]  # (0.125 / 0.5, 0.125) times the ratio of a level


# --- deformable attention ---


def test_deformable_attention_by_its_definition() -> None:
    attention = MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=4).eval()
    nn.init.normal_(attention.attention_weights.weight)
    query, points, tokens = torch.rand(2, 5, 32), torch.rand(2, 5, 2, 2), torch.rand(2, 20, 32)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[1, 3:9] = True
    found = attention(query, points, tokens, LEVELS, STARTS, padding)
    assert found.shape == (2, 5, 32)
    torch.testing.assert_close(found, attention(query, points, tokens, SIZES, None, padding))
    value = attention.value_proj(tokens).masked_fill(padding[..., None], 0).view(2, 20, 4, 8)
    offsets = attention.sampling_offsets(query).view(2, 5, 4, 2, 4, 2)
    weights = attention.attention_weights(query).view(2, 5, 4, 8).softmax(-1).view(2, 5, 4, 2, 4)
    locations = points[:, :, None, :, None] + offsets / LEVELS.flip(1)[:, None]
    sampled = ms_deform_attn_core_pytorch(value, LEVELS, locations, weights)
    assert sampled.shape == (2, 5, 32)
    torch.testing.assert_close(found, attention.output_proj(sampled), atol=1e-5, rtol=1e-4)
    compiled = MSDeformAttnFunction.apply(value, LEVELS, STARTS, locations, weights, 128)
    torch.testing.assert_close(compiled, sampled, atol=1e-5, rtol=1e-4)
    boxes = torch.cat((points, torch.rand(2, 5, 2, 2)), dim=-1)
    scaled = points[:, :, None, :, None] + offsets / 4 * boxes[:, :, None, :, None, 2:] * 0.5
    expected = attention.output_proj(ms_deform_attn_core_pytorch(value, LEVELS, scaled, weights))
    torch.testing.assert_close(attention(query, boxes, tokens, LEVELS, STARTS, padding), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="2 or 4"):
        attention(query, torch.rand(2, 5, 2, 3), tokens, LEVELS, STARTS)


def test_function_has_gradients() -> None:
    value = torch.rand(1, 20, 4, 8, requires_grad=True)
    weights = torch.rand(1, 5, 4, 2, 4, requires_grad=True)
    MSDeformAttnFunction.apply(value, LEVELS, STARTS, torch.rand(1, 5, 4, 2, 4, 2), weights, 64).sum().backward()
    assert value.grad is not None and weights.grad is not None


def test_registered_models_consist_of_these_classes() -> None:
    model = client_model()
    assert isinstance(model.sem_seg_head.pixel_decoder, MSDeformAttnPixelDecoder)
    assert sum(isinstance(module, MSDeformAttn) for module in model.modules()) == 1
    keys = [key for key in model.state_dict() if key.startswith("sem_seg_head.pixel_decoder.transformer.encoder")]
    assert len(keys) == 16 and keys[0].endswith("layers.0.self_attn.sampling_offsets.weight")


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("sh"), reason="a shell script")
@pytest.mark.parametrize("command", [["sh", "make.sh"], [sys.executable, "setup.py", "build", "install"]], ids=str)
def test_make_in_the_directory_of_the_op(command: list[str]) -> None:
    folder = ROOT / "mask2former/modeling/pixel_decoder/ops"
    environment = {**os.environ, "PYTHON": sys.executable, "MASK2FORMER_BUILD_OPS": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "MASK2FORMER_BUILD_OPS=0: nothing to compile\n"), done.stderr
    wrong = subprocess.run(
        command, cwd=folder, env={**environment, "MASK2FORMER_BUILD_OPS": "x"}, capture_output=True, check=False
    )
    assert wrong.returncode == 1


# --- Swin ---


def test_swin_with_four_channels() -> None:
    class Swin4(D2SwinTransformer):
        def __init__(self, cfg: Any, input_shape: ShapeSpec) -> None:
            super().__init__(cfg, input_shape)
            embed = {"patch_size": 4, "in_chans": 4, "embed_dim": cfg.MODEL.SWIN.EMBED_DIM}
            self.patch_embed = PatchEmbed(**embed, norm_layer=nn.LayerNorm)

    cfg = client_config(SWIN, ["MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]])
    sizes = {"res2": (1, 24, 16, 16), "res3": (1, 48, 8, 8), "res4": (1, 96, 4, 4), "res5": (1, 192, 2, 2)}
    with torch.no_grad():
        assert shapes(Swin4(cfg, ShapeSpec(channels=3))(torch.rand(1, 4, 64, 64))) == sizes
        four = D2SwinTransformer(cfg, ShapeSpec(channels=4))
        assert shapes(four(torch.rand(1, 4, 64, 64))) == sizes
    assert four.num_features == [24, 48, 96, 192] and isinstance(four, SwinTransformer)


SWIN_SIZES: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def test_swin_by_its_parts() -> None:
    swin = SwinTransformer(in_chans=3, out_indices=(0, 1), **SWIN_SIZES).eval()
    images = torch.rand(2, 3, 40, 56)
    x = swin.patch_embed(images)
    height, width = x.size(2), x.size(3)
    x = swin.pos_drop(x.flatten(2).transpose(1, 2))
    found = {}
    for i in range(swin.num_layers):
        out, H, W, x, height, width = swin.layers[i](x, height, width)
        out = getattr(swin, f"norm{i}")(out)
        found[f"res{i + 2}"] = out.view(-1, H, W, swin.num_features[i]).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, swin(images))
    assert shapes(found) == {"res2": (2, 12, 10, 14), "res3": (2, 24, 5, 7)}


def test_overridden_block_gets_the_usual_arguments() -> None:
    class Block(SwinTransformerBlock):
        def forward(self, x, mask_matrix):  # type: ignore[no-untyped-def, override]
            assert (self.H, self.W) == (10, 10)
            return super().forward(x, mask_matrix)

    layer, x = BasicLayer(dim=8, depth=2, num_heads=2, window_size=4).eval(), torch.rand(1, 100, 8)
    expected = layer(x, 10, 10)
    assert expected[1:3] == expected[4:] == (10, 10)
    layer.blocks[1].__class__ = Block
    torch.testing.assert_close(layer(x, 10, 10)[0], expected[0])


def test_parts_of_swin() -> None:
    x = torch.rand(2, 8, 12, 5)
    windows = window_partition(x, 4)
    assert windows.shape == (12, 4, 4, 5)
    assert torch.equal(windows[1], x[0, :4, 4:8]) and torch.equal(window_reverse(windows, 4, 8, 12), x)
    assert PatchMerging(dim=4, norm_layer=nn.LayerNorm)(torch.rand(2, 15, 4), 3, 5).shape == (2, 6, 8)
    assert Mlp(in_features=4, hidden_features=8, out_features=3, act_layer=nn.ReLU)(torch.rand(2, 4)).shape == (2, 3)
    attention = WindowAttention(8, window_size=(2, 3), num_heads=2, qkv_bias=True, attn_drop=0.5, proj_drop=0.0)
    assert attention(torch.rand(4, 6, 8)).shape == (4, 6, 8) and attention.window_size == (2, 3)
    patches = torch.rand(1, 6, 8)
    assert not torch.equal(attention(patches), attention(patches))  # in training the dropout acts
    attention.attn_drop.p = 0.0
    assert torch.equal(attention(patches), attention(patches))
    assert PatchEmbed(patch_size=4, in_chans=2, embed_dim=6)(torch.rand(1, 2, 9, 8)).shape == (1, 6, 3, 2)


def test_frozen_stages() -> None:
    def trained(stages: int) -> set[str]:
        swin = SwinTransformer(frozen_stages=stages, ape=True, pretrain_img_size=32, out_indices=(0, 1), **SWIN_SIZES)
        swin.train()
        frozen = [m for m in swin.layers if not m.training] + [m for m in (swin.patch_embed,) if not m.training]
        assert len(frozen) == {-1: 0, 0: 1, 1: 1, 2: 2}[stages]
        return {".".join(name.split(".")[:2]) for name, p in swin.named_parameters() if p.requires_grad}

    everything = trained(-1)
    assert everything - trained(0) == {"patch_embed.proj", "patch_embed.norm"}
    assert trained(0) - trained(1) == {"absolute_pos_embed"}
    assert trained(1) - trained(2) == {"layers.0"}


# --- images of several sizes ---


def test_nested_tensor() -> None:
    nested = nested_tensor_from_tensor_list([torch.ones(3, 4, 5), torch.ones(3, 6, 3)])
    tensors, mask = nested.decompose()
    assert mask is not None
    assert tensors.shape == (2, 3, 6, 5) and mask.shape == (2, 6, 5) and mask.dtype == torch.bool
    assert torch.equal(mask, tensors[:, 0] == 0) and mask.sum() == 10 + 12
    assert isinstance(nested.to("cpu"), NestedTensor) and NestedTensor(tensors, None).to("cpu").mask is None
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        nested_tensor_from_tensor_list([torch.ones(4, 5)])
    assert is_dist_avail_and_initialized() is False


def test_a_model_in_double_precision_trains() -> None:
    model = client_model(train=True).double()
    samples = batch(1)
    samples[0]["image"] = samples[0]["image"].double()
    losses = model(samples)
    sum(losses.values()).backward()
    assert model.sem_seg_head.pixel_decoder.mask_features.weight.grad.dtype == torch.float64
