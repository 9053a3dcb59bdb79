"""DETR's encoder and decoder against torch's own layers, which have the same weights but no positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mask2former.modeling.transformer_decoder.position_encoding import PositionEmbeddingSine
from mask2former.modeling.transformer_decoder.transformer import (
    DecoderLayer,
    EncoderLayer,
    TransformerDecoder,
    TransformerEncoder,
    map_tokens,
)

SIZES = {"dim": 16, "heads": 2, "hidden": 24}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_equals_torchs(pre_norm: bool) -> None:
    ours = EncoderLayer(**SIZES, pre_norm=pre_norm).eval()
    theirs = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=pre_norm).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_equals_torchs(pre_norm: bool) -> None:
    ours = DecoderLayer(**SIZES, pre_norm=pre_norm).eval()
    theirs = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True, norm_first=pre_norm).eval()
    ours.load_state_dict(theirs.state_dict())
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(x, memory, memory), theirs(x, memory), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_positions_join_queries_and_keys_but_not_values(pre_norm: bool) -> None:
    """With keys that are all alike every value counts the same, wherever the query looks."""
    layer = DecoderLayer(**SIZES, pre_norm=pre_norm).eval()
    x, position = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    memory, keys = torch.randn(1, 7, 16), torch.ones(1, 7, 16)
    torch.testing.assert_close(layer(x, keys, memory, position), layer(x, keys, memory), atol=1e-6, rtol=1e-5)
    mean = memory.mean(1, keepdim=True).expand_as(memory)
    torch.testing.assert_close(layer(x, keys, memory), layer(x, keys, mean), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(layer(x, keys, memory), layer(x, keys, keys), atol=1e-4)
    different = torch.randn(1, 7, 16)
    assert not torch.allclose(layer(x, different, memory, position), layer(x, different, memory), atol=1e-4)
    encoder = EncoderLayer(**SIZES, pre_norm=pre_norm).eval()
    assert not torch.allclose(encoder(memory, different), encoder(memory), atol=1e-4)


def test_only_pre_norm_ends_the_encoder_with_a_norm() -> None:
    x = torch.randn(1, 7, 16)
    assert [name for name, _ in TransformerEncoder(0, **SIZES).named_parameters()] == []
    torch.testing.assert_close(TransformerEncoder(0, **SIZES)(x), x)
    pre = TransformerEncoder(2, **SIZES, pre_norm=True)
    assert "norm.weight" in dict(pre.named_parameters())
    assert pre(x).mean(-1).abs().max() < 1e-5


def test_decoder_gives_the_normalized_queries_of_each_layer() -> None:
    decoder = TransformerDecoder(3, **SIZES, pre_norm=True).eval()
    x, memory = torch.randn(1, 5, 16), torch.randn(1, 7, 16)
    states = decoder(x, memory, memory)
    first = decoder.layers[0](x, memory, memory)
    assert len(states) == 3
    torch.testing.assert_close(states[0], decoder.norm(first))
    torch.testing.assert_close(states[1], decoder.norm(decoder.layers[1](first, memory, memory)))


def test_dropout_is_active_in_training_only() -> None:
    layer, x = EncoderLayer(**SIZES, dropout=0.5), torch.randn(1, 7, 16)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_tokens_of_maps_and_frames() -> None:
    encoding = PositionEmbeddingSine(2, normalize=True)
    maps = [torch.arange(2 * 4 * 6.0).view(2, 4, 2, 3), torch.rand(2, 4, 1, 2)]
    tokens, position = map_tokens(maps, encoding)
    assert tokens.shape == (2, 8, 4) and position.shape == (8, 4)
    torch.testing.assert_close(tokens[1, 4], maps[0][1, :, 1, 1])  # row 1, column 1
    torch.testing.assert_close(tokens[0, 7], maps[1][0, :, 0, 1])
    torch.testing.assert_close(position[6:], encoding.tokens(1, 1, 2, torch.device("cpu")))
    clip, _ = map_tokens(maps[:1], encoding, frames=2)
    assert clip.shape == (1, 12, 4)
    torch.testing.assert_close(clip[0, 6:], tokens[1, :6])
