"""DETR's encoder and decoder against torch's own layers, which have the same weights but no positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mask2former.modeling.transformer_decoder.position_encoding import PositionEmbeddingSine
from mask2former.modeling.transformer_decoder.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    as_one_map,
    one_for_all,
)

SIZES = {"d_model": 16, "nhead": 2, "dim_feedforward": 24, "dropout": 0.0}


@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layer_equals_torchs(normalize_before: bool, activation: str) -> None:
    ours = TransformerEncoderLayer(**SIZES, activation=activation, normalize_before=normalize_before).eval()
    theirs = nn.TransformerEncoderLayer(**SIZES, activation=activation, norm_first=normalize_before)
    ours.load_state_dict(theirs.state_dict())
    x, blocked = torch.randn(7, 2, 16), torch.rand(4, 7, 7) > 0.6
    padding = torch.zeros(2, 7, dtype=torch.bool)
    blocked[..., 0], padding[1, 5:] = False, True
    for masks in ((None, None), (blocked[0], None), (None, padding), (blocked, padding)):
        torch.testing.assert_close(ours(x, *masks), theirs(x, *masks), atol=1e-5, rtol=1e-4)
    added = torch.randn(7, 7)
    expected = theirs(x, added, torch.zeros(2, 7).masked_fill(padding, -torch.inf))
    torch.testing.assert_close(ours(x, src_mask=added, src_key_padding_mask=padding), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalize_before", [False, True])
def test_decoder_layer_equals_torchs(normalize_before: bool) -> None:
    ours = TransformerDecoderLayer(**SIZES, normalize_before=normalize_before).eval()
    theirs = nn.TransformerDecoderLayer(**SIZES, norm_first=normalize_before)
    ours.load_state_dict(theirs.state_dict())
    x, memory = torch.randn(5, 2, 16), torch.randn(7, 2, 16)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 4:] = True
    expected = theirs(x, memory, memory_key_padding_mask=padding)
    torch.testing.assert_close(ours(x, memory, memory_key_padding_mask=padding), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalize_before", [False, True])
def test_positions_join_queries_and_keys_but_not_values(normalize_before: bool) -> None:
    """With keys that are all alike every value counts the same, wherever the query looks."""
    layer = TransformerDecoderLayer(**SIZES, normalize_before=normalize_before).eval()
    x, query_pos, memory = torch.randn(1, 1, 16), torch.randn(1, 1, 16), torch.randn(7, 1, 16)
    alike = {"pos": torch.ones(7, 1, 16) - memory}
    torch.testing.assert_close(
        layer(x, memory, query_pos=query_pos, **alike), layer(x, memory, **alike), atol=1e-6, rtol=1e-5
    )
    mean = memory.mean(0, keepdim=True).expand_as(memory)
    torch.testing.assert_close(layer(x, memory, **alike), layer(x, mean), atol=1e-6, rtol=1e-5)
    different = {"pos": torch.randn(7, 1, 16)}
    assert not torch.allclose(
        layer(x, memory, query_pos=query_pos, **different), layer(x, memory, **different), atol=1e-4
    )
    encoder = TransformerEncoderLayer(**SIZES, normalize_before=normalize_before).eval()
    assert not torch.allclose(encoder(memory, **different), encoder(memory), atol=1e-4)


def test_only_normalize_before_ends_the_encoder_with_a_norm() -> None:
    x = torch.randn(7, 1, 16)
    nothing = TransformerEncoder(TransformerEncoderLayer(**SIZES), 0)
    assert [name for name, _ in nothing.named_parameters()] == []
    torch.testing.assert_close(nothing(x), x)
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 1}
    assert Transformer(**SIZES, **sizes).encoder.norm is None
    before = Transformer(**SIZES, **sizes, normalize_before=True).encoder
    assert before(x).mean(-1).abs().max() < 1e-5


def test_decoder_gives_the_normalized_queries_of_each_layer() -> None:
    layer = TransformerDecoderLayer(**SIZES, normalize_before=True)
    decoder = TransformerDecoder(layer, 3, nn.LayerNorm(16), return_intermediate=True).eval()
    for copied in decoder.layers[1:]:
        nn.init.normal_(copied.linear1.weight)
    x, memory = torch.randn(5, 1, 16), torch.randn(7, 1, 16)
    states = decoder(x, memory)
    first = decoder.layers[0](x, memory)
    assert states.shape == (3, 5, 1, 16)
    torch.testing.assert_close(states[0], decoder.norm(first))
    torch.testing.assert_close(states[1], decoder.norm(decoder.layers[1](first, memory)))
    decoder.return_intermediate = False
    torch.testing.assert_close(decoder(x, memory), states[-1:])


def test_transformer_reads_maps_and_gives_batches_first() -> None:
    transformer = Transformer(**SIZES, num_encoder_layers=1, num_decoder_layers=2, return_intermediate_dec=True).eval()
    src, queries, pos = torch.randn(2, 16, 3, 4), torch.randn(5, 16), torch.randn(1, 16, 3, 4)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, :, 3] = True
    states, memory = transformer(src, mask, queries, pos)
    assert states.shape == (2, 2, 5, 16) and memory.shape == (2, 16, 3, 4)
    cut, _ = transformer(src[1:, ..., :3], None, queries, pos[..., :3])  # what is masked might as well not be there
    torch.testing.assert_close(states[:, 1:], cut, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(transformer(src, mask, queries, pos.expand(2, -1, -1, -1))[0], states)


def test_layers_start_from_different_weights() -> None:
    transformer = Transformer(**SIZES, num_encoder_layers=2, num_decoder_layers=2)
    for stack in (transformer.encoder.layers, transformer.decoder.layers):
        first, second = (dict(layer.named_parameters()) for layer in stack)
        assert not any(torch.equal(first[name], second[name]) for name in first if first[name].dim() > 1)


def test_dropout_is_active_in_training_only() -> None:
    layer, x = TransformerEncoderLayer(**SIZES | {"dropout": 0.5}), torch.randn(7, 1, 16)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_overridden_layers_act() -> None:
    class Doubled(TransformerEncoderLayer):
        def forward(self, src, src_mask=None, src_key_padding_mask=None, pos=None):  # type: ignore[no-untyped-def]
            return 2 * src

    class OwnPosition(TransformerEncoderLayer):
        @staticmethod
        def with_pos_embed(tensor, pos):  # type: ignore[no-untyped-def]
            return tensor if pos is None else tensor * pos

    x = torch.randn(7, 1, 16)
    torch.testing.assert_close(TransformerEncoder(Doubled(**SIZES), 2)(x), 4 * x)
    layer = OwnPosition(**SIZES).eval()
    torch.testing.assert_close(layer(x, pos=torch.ones(7, 1, 16)), layer(x))


def test_one_map_of_several_and_of_frames() -> None:
    encoding = PositionEmbeddingSine(2, normalize=True)
    maps = [torch.arange(2 * 4 * 6.0).view(2, 4, 2, 3), torch.rand(2, 4, 1, 2)]
    src, position = as_one_map(maps[:1], encoding)
    assert src is maps[0] and one_for_all(position).shape == (1, 4, 2, 3)
    src, position = as_one_map(maps, encoding)
    assert src.shape == (2, 4, 8, 1) and position.shape == (1, 4, 8, 1)
    torch.testing.assert_close(src[1, :, 4, 0], maps[0][1, :, 1, 1])  # row 1, column 1
    torch.testing.assert_close(src[0, :, 7, 0], maps[1][0, :, 0, 1])
    torch.testing.assert_close(position[0, :, 6:, 0].T, encoding.tokens(1, 1, 2, torch.device("cpu")))
    clip, times = as_one_map(maps[:1], encoding, frames=2)
    assert clip.shape == (1, 4, 12, 1) and times.shape == (1, 4, 12, 1)
    torch.testing.assert_close(clip[0, :, 6:], src[1, :, :6])
