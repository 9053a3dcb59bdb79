"""Attention, position encoding and residual blocks against torch's own modules and hand-made values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mask2former.modeling.transformer_decoder.layers import (
    MLP,
    Attention,
    CrossAttentionLayer,
    FFNLayer,
    SelfAttentionLayer,
)
from mask2former.modeling.transformer_decoder.position_encoding import PositionEmbeddingSine, PositionEmbeddingSine3D

CPU = torch.device("cpu")


def torchs(ours: Attention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(32, 4).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize("form", ["per head", "shared", "broadcast", "float", "padding", "both", "float and padding"])
def test_attention_equals_torch_multihead_attention(form: str) -> None:
    ours, query, memory = Attention(32, 4), torch.randn(5, 2, 32), torch.randn(9, 2, 32)
    blocked = torch.rand(2, 1, 5, 9) > 0.4
    blocked[..., 0] = False
    per_head = blocked.expand(-1, 4, -1, -1).flatten(0, 1)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    bias = torch.randn(8, 5, 9)
    masks = {
        "per head": (per_head, per_head, None),
        "shared": (blocked[0, 0], blocked[0, 0], None),
        "broadcast": (blocked, per_head, None),
        "float": (bias, bias, None),
        "padding": (None, None, padding),
        "both": (per_head, per_head, padding),
        "float and padding": (bias, bias + 0, padding),
    }
    mask, same, padded = masks[form]
    if form == "float and padding":
        theirs_padding = torch.zeros(2, 9).masked_fill(padding, float("-inf"))
    else:
        theirs_padding = padding if padded is not None else None
    for weights in (False, True):
        expected, expected_weights = torchs(ours)(
            query, memory, memory, attn_mask=same, key_padding_mask=theirs_padding, need_weights=True
        )
        out, attention = ours(query, memory, memory, attn_mask=mask, key_padding_mask=padded, need_weights=weights)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
        assert (attention is not None) == weights
        if attention is not None:
            torch.testing.assert_close(attention, expected_weights, atol=1e-5, rtol=1e-4)


def test_attention_of_a_sequence_that_is_stored_batch_first() -> None:
    attention, query, memory = Attention(32, 4), torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    views = query.transpose(0, 1), memory.transpose(0, 1)
    copies = views[0].contiguous(), views[1].contiguous()
    torch.testing.assert_close(
        attention(views[0], views[1], views[1])[0], attention(copies[0], copies[1], copies[1])[0], atol=1e-6, rtol=1e-5
    )


def test_a_hook_gets_weights_where_they_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    layer, got = CrossAttentionLayer(16, 2).eval(), []
    layer.multihead_attn.register_forward_hook(lambda module, inputs, output: got.append(output))
    tgt, memory = torch.randn(3, 1, 16), torch.randn(4, 1, 16)
    layer(tgt, memory)
    layer(tgt, memory)
    assert [x[1] for x in got] == [None, None]
    assert caplog.text.count("set the attribute need_weights") == 1
    layer.multihead_attn.need_weights = True
    plain = got[0][0]
    layer(tgt, memory)
    torch.testing.assert_close(got[2][0], plain, atol=1e-6, rtol=1e-5)
    assert got[2][1].shape == (1, 3, 4)
    torch.testing.assert_close(got[2][1].sum(-1), torch.ones(1, 3))


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        Attention(30, 4)


def test_pre_norm_changes_the_order_only() -> None:
    block = CrossAttentionLayer(16, 2, normalize_before=True)
    x, memory = torch.randn(3, 1, 16), torch.randn(4, 1, 16)
    expected = x + block.multihead_attn(block.norm(x), memory, memory)[0]
    torch.testing.assert_close(block(x, memory), expected)
    post = FFNLayer(16, 32)
    assert torch.allclose(post(x).mean(-1), torch.zeros(3, 1), atol=1e-5)  # ends with the norm


@pytest.mark.parametrize("normalize_before", [False, True])
def test_overridden_forms_of_layers_are_called(normalize_before: bool) -> None:
    class Twice(SelfAttentionLayer):
        def forward_post(self, tgt, *arguments):
            return 2 * super().forward_post(tgt, *arguments)

        def forward_pre(self, tgt, *arguments):
            return 2 * super().forward_pre(tgt, *arguments)

    twice, x, position = Twice(16, 2, normalize_before=normalize_before), torch.randn(3, 1, 16), torch.randn(3, 1, 16)
    once = SelfAttentionLayer(16, 2, normalize_before=normalize_before)
    once.load_state_dict(twice.state_dict())
    torch.testing.assert_close(twice(x, query_pos=position), 2 * once(x, query_pos=position))


def test_positions_join_query_and_key_but_not_value() -> None:
    layer, x, memory = CrossAttentionLayer(16, 2), torch.randn(3, 1, 16), torch.randn(4, 1, 16)
    pos, query_pos = torch.randn(4, 1, 16), torch.randn(3, 1, 16)
    expected = layer.norm(x + layer.multihead_attn(x + query_pos, memory + pos, memory)[0])
    torch.testing.assert_close(layer(x, memory, pos=pos, query_pos=query_pos), expected)


def test_mlp_keys_and_depth() -> None:
    mlp = MLP(4, 8, 2, 3)
    assert [tuple(p.shape) for n, p in mlp.named_parameters() if n.endswith("weight")] == [(8, 4), (8, 8), (2, 8)]


def test_position_encoding_by_hand() -> None:
    encoding = PositionEmbeddingSine(4, normalize=True).tokens(1, 2, 3, CPU)
    assert encoding.shape == (6, 8)
    row, column = encoding[4, :4], encoding[4, 4:]  # row 1, column 1
    angle_row, angle_column = 2 * math.pi * 2 / (2 + 1e-6), 2 * math.pi * 2 / (3 + 1e-6)
    for ours, angle in ((row, angle_row), (column, angle_column)):
        expected = [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
        torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("frames", [0, 3])
def test_maps_tokens_and_masks_have_one_encoding(normalize: bool, frames: int) -> None:
    """Without padding a mask changes nothing; with padding the rest is encoded as a smaller map."""
    cls = PositionEmbeddingSine3D if frames else PositionEmbeddingSine
    encoding, lead = cls(4, normalize=normalize), (2, frames) if frames else (2,)
    x = torch.zeros(*lead, 5, 6, 7)
    mapped = encoding(x)
    assert mapped.shape == (*lead, 8, 6, 7)
    tokens = encoding.tokens(max(frames, 1), 6, 7, CPU).unflatten(0, (max(frames, 1), 6, 7))
    torch.testing.assert_close(mapped[1].movedim(-3, -1), tokens if frames else tokens[0])
    mask = torch.zeros(*lead, 6, 7, dtype=torch.bool)
    torch.testing.assert_close(encoding(x, mask), mapped, atol=1e-5, rtol=1e-5)
    mask[..., 4:, :] = True
    mask[..., 5:] = True
    smaller = encoding(torch.zeros(*lead, 5, 4, 5))
    torch.testing.assert_close(encoding(x, mask)[..., :4, :5], smaller, atol=1e-5, rtol=1e-5)


def test_position_encoding_refuses_odd_channels_and_a_lone_scale() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        PositionEmbeddingSine(3)
    with pytest.raises(ValueError, match="normalize"):
        PositionEmbeddingSine(4, scale=1.0)
    torch.testing.assert_close(
        PositionEmbeddingSine(4, normalize=True, scale=2 * math.pi).tokens(1, 2, 2, CPU),
        PositionEmbeddingSine(4, normalize=True).tokens(1, 2, 2, CPU),
    )


def test_temporal_encoding_adds_the_frame() -> None:
    plain = PositionEmbeddingSine(4, normalize=True).tokens(1, 2, 2, CPU)
    clip = PositionEmbeddingSine3D(4, normalize=True).tokens(3, 2, 2, CPU).view(3, 4, 8)
    added = clip - plain
    torch.testing.assert_close(added, added[:, :1].expand(-1, 4, -1), atol=1e-6, rtol=0)
    assert not torch.allclose(added[0], added[1])


def test_encoding_cached_in_inference_serves_training() -> None:
    position = PositionEmbeddingSine(4, normalize=True)
    with torch.inference_mode():
        position.tokens(1, 2, 2, CPU)
    weight = torch.ones(4, 8, requires_grad=True)
    (weight * position.tokens(1, 2, 2, CPU)).sum().backward()
    assert weight.grad is not None
