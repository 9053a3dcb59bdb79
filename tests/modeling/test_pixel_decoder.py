"""The deformable pixel decoder: geometry, shapes, initial directions, precision."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec

from mask2former.errors import ConfigError
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder, MSDeformAttnTransformerEncoder
from mask2former.modeling.pixel_decoder.ops.modules import MSDeformAttn

SHAPES = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in range(2, 6)}


def make(**options: object) -> MSDeformAttnPixelDecoder:
    settings = {"conv_dim": 32, "mask_dim": 16, "transformer_enc_layers": 1, "transformer_nheads": 4}
    return MSDeformAttnPixelDecoder(SHAPES, **{**settings, **options})  # type: ignore[arg-type]


def features(batch: int = 2, height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    return {k: torch.randn(batch, s.channels, height // s.stride, width // s.stride) for k, s in SHAPES.items()}


def test_shapes() -> None:
    mask_features, encoded, levels = make().eval().forward_features(features())
    assert mask_features.shape == (2, 16, 16, 24)
    assert [x.shape[-2:] for x in levels] == [(2, 3), (4, 6), (8, 12)]
    assert encoded is levels[0] and all(x.shape[1] == 32 for x in levels)


@pytest.mark.parametrize("batch", [1, 2])
def test_maps_have_the_strides_for_which_kernels_are_fast(batch: int) -> None:
    # torch's kernels look at the stride of the batch too, although one image does not need it.
    _, _, levels = make().eval().forward_features(features(batch))
    for x in levels:
        channels, height, width = x.shape[1:]
        assert x.stride()[1:] == (1, width * channels, channels) and x.stride(0) >= channels * height * width


def test_a_map_of_one_value_for_a_norm_names_the_keys() -> None:
    decoder = make()
    with pytest.raises(ConfigError, match=r"'res5' has one pixel.*INPUT\.IMAGE_SIZE"):
        decoder.forward_features(features(1, 32, 32))
    decoder.forward_features(features(2, 32, 32))
    make(conv_dim=64).forward_features(features(1, 32, 32))


def test_reference_points_are_pixel_centers() -> None:
    points = MSDeformAttnTransformerEncoder.get_reference_points([(1, 2), (2, 1)], None, "cpu")
    assert points[0, :, 0].tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_first_directions() -> None:
    attention = MSDeformAttn(32, n_levels=2, n_heads=8, n_points=3)
    offsets = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    torch.testing.assert_close(offsets[0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(offsets[3, 0, 0], torch.tensor([-1.0, 1.0]), atol=1e-6, rtol=0)


def test_two_levels_and_two_fpn_steps() -> None:
    decoder = make(transformer_in_features=("res4", "res5")).eval()
    names = {n.split(".")[0] for n, _ in decoder.named_parameters()}
    assert {"adapter_1", "adapter_2", "layer_1", "layer_2"} <= names
    assert decoder.adapter_1.weight.shape[1] == SHAPES["res2"].channels  # counted from the finest map
    mask_features, _, levels = decoder.forward_features(features())
    assert mask_features.shape[-2:] == (16, 24) and len(levels) == 3


def test_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="IN_FEATURES"):
        make(transformer_in_features=("res5", "res9"))


def test_bf16_autocast_is_close_to_fp32() -> None:
    decoder, x = make().eval(), features(1)
    with torch.no_grad():
        exact = decoder.forward_features(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = decoder.forward_features(x)[0]
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_every_parameter_gets_a_gradient() -> None:
    decoder = make()
    mask_features, _, levels = decoder.forward_features(features(1))
    (mask_features.square().mean() + sum(x.square().mean() for x in levels)).backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []
