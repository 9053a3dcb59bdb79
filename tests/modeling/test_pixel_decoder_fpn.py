"""The feature pyramid, with and without an encoder on its coarsest map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec

from mask2former.config import load_config
from mask2former.modeling import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.modeling.pixel_decoder import build_pixel_decoder

SHAPES = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in range(2, 6)}
KINDS = [BasePixelDecoder, TransformerEncoderPixelDecoder]


def make(kind: type[BasePixelDecoder], **options: Any) -> BasePixelDecoder:
    if kind is TransformerEncoderPixelDecoder:
        options = {"transformer_enc_layers": 2, "transformer_nheads": 4, "transformer_dim_feedforward": 24, **options}
    return kind(SHAPES, **{"conv_dim": 32, "mask_dim": 16, **options})


def features(batch: int = 2, height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    sizes = {k: (-(-height // s.stride), -(-width // s.stride)) for k, s in SHAPES.items()}
    return {k: torch.randn(batch, s.channels, *sizes[k]) for k, s in SHAPES.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (50, 70)], ids=str)
def test_shapes(kind: type[BasePixelDecoder], size: tuple[int, int]) -> None:
    maps = features(2, *size)
    mask_features, encoded, levels = make(kind).eval()(maps)
    assert mask_features.shape == (2, 16, *maps["res2"].shape[-2:])
    assert [x.shape for x in levels] == [(2, 32, *maps[name].shape[-2:]) for name in ("res5", "res4", "res3")]
    if kind is BasePixelDecoder:
        assert encoded is None
    else:
        assert encoded is not None and encoded.shape == levels[0].shape


def test_pyramid_by_hand() -> None:
    """One channel, convolutions that copy: each level is its backbone map plus the coarser level, upsampled."""
    shapes = {k: ShapeSpec(channels=1, stride=s.stride) for k, s in SHAPES.items()}
    decoder = BasePixelDecoder(shapes, conv_dim=1, mask_dim=1, norm="")
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            p.zero_()
            if name.endswith("weight"):
                p[0, 0, p.shape[2] // 2, p.shape[3] // 2] = 1
        maps = {f"res{i}": torch.rand(1, 1, 2 ** (5 - i), 3 * 2 ** (5 - i)) for i in range(2, 6)}
        mask_features, _, levels = decoder.forward_features(maps)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    torch.testing.assert_close(levels[0], maps["res5"])
    torch.testing.assert_close(levels[1], maps["res4"] + enlarged(maps["res5"]))
    torch.testing.assert_close(levels[2], maps["res3"] + enlarged(levels[1]))
    torch.testing.assert_close(mask_features, maps["res2"] + enlarged(levels[2]))


def test_convolutions_count_from_the_finest_map() -> None:
    decoder = make(BasePixelDecoder)
    names = {name.split(".")[0] for name, _ in decoder.named_parameters()}
    assert names == {"adapter_1", "adapter_2", "adapter_3", "layer_1", "layer_2", "layer_3", "layer_4", "mask_features"}
    assert decoder.adapter_1.weight.shape[1] == SHAPES["res2"].channels
    assert decoder.layer_4.weight.shape[1] == SHAPES["res5"].channels


def test_pyramid_starts_from_the_encoded_map() -> None:
    decoder = make(TransformerEncoderPixelDecoder).eval()
    _, encoded, levels = decoder.forward_features(features())
    torch.testing.assert_close(levels[0], decoder.layer_4(encoded))


def test_encoder_looks_at_the_whole_map_and_knows_where() -> None:
    decoder = make(TransformerEncoderPixelDecoder).eval()
    x = torch.randn(1, SHAPES["res5"].channels, 4, 6)
    with torch.no_grad():
        before = decoder.encode(x)
        x[..., 3, 5] += 1
        assert (decoder.encode(x) - before)[..., 0, 0].abs().max() > 1e-4
        flipped = decoder.encode(x.flip(-1)).flip(-1)
        assert (decoder.encode(x) - flipped).abs().max() > 1e-2  # equal contents at other places


def test_pre_norm_ends_with_a_norm() -> None:
    key = "transformer.encoder.norm.weight"
    assert key not in make(TransformerEncoderPixelDecoder).state_dict()
    assert key in make(TransformerEncoderPixelDecoder, transformer_pre_norm=True).state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: type[BasePixelDecoder]) -> None:
    decoder = make(kind)
    mask_features, _, _ = decoder(features(1))
    mask_features.square().mean().backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_is_close_to_fp32(kind: type[BasePixelDecoder]) -> None:
    decoder, x = make(kind).eval(), features(1)
    with torch.no_grad():
        exact = decoder(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = decoder(x)[0]
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_settings_come_from_the_config() -> None:
    cfg = load_config(
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        [
            *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"),
            *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 3, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
            *("MODEL.SEM_SEG_HEAD.MASK_DIM", 16, "MODEL.SEM_SEG_HEAD.NORM", "", "MODEL.MASK_FORMER.NHEADS", 4),
            *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 24, "MODEL.MASK_FORMER.DROPOUT", 0.25),
            *("MODEL.MASK_FORMER.PRE_NORM", True, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3", "res4", "res5"]),
        ],
    )
    decoder = build_pixel_decoder(cfg, SHAPES)
    encoder = decoder.transformer.encoder
    layer = encoder.layers[0]
    assert len(encoder.layers) == 3 and layer.self_attn.num_heads == 4 and layer.self_attn.dropout == 0.25
    assert layer.linear1.weight.shape == (24, 32) and layer.normalize_before
    assert decoder.in_features == ["res3", "res4", "res5"] and not hasattr(decoder, "layer_4")
    assert decoder.mask_features.weight.shape == (16, 32, 3, 3) and decoder.layer_1.norm is None
