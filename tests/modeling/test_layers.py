"""Attention, position encoding and residual blocks against torch's own modules and hand-made values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mask2former.modeling.transformer_decoder.layers import MLP, Attention, CrossAttentionBlock, FeedForwardBlock
from mask2former.modeling.transformer_decoder.position_encoding import PositionEncoding


def test_attention_equals_torch_multihead_attention() -> None:
    ours, theirs = Attention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, memory = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    allowed = torch.rand(2, 1, 5, 9) > 0.4
    allowed[..., 0] = True
    blocked = ~allowed.expand(-1, 4, -1, -1).flatten(0, 1)
    expected = theirs(query, memory, memory, attn_mask=blocked)[0]
    torch.testing.assert_close(ours(query, memory, memory, allowed), expected, atol=1e-5, rtol=1e-4)


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        Attention(30, 4)


def test_pre_norm_changes_the_order_only() -> None:
    block = CrossAttentionBlock(16, 2, pre_norm=True)
    x, memory = torch.randn(1, 3, 16), torch.randn(1, 4, 16)
    expected = x + block.multihead_attn(block.norm(x), memory, memory)
    torch.testing.assert_close(block(x, memory, memory), expected)
    post = FeedForwardBlock(16, 32)
    assert torch.allclose(post(x).mean(-1), torch.zeros(1, 3), atol=1e-5)  # ends with the norm


def test_mlp_keys_and_depth() -> None:
    mlp = MLP(4, 8, 2, 3)
    assert [tuple(p.shape) for n, p in mlp.named_parameters() if n.endswith("weight")] == [(8, 4), (8, 8), (2, 8)]


def test_position_encoding_by_hand() -> None:
    encoding = PositionEncoding(8)(1, 2, 3, torch.device("cpu"))
    assert encoding.shape == (6, 8)
    row, column = encoding[4, :4], encoding[4, 4:]  # row 1, column 1
    angle_row, angle_column = 2 * math.pi * 2 / (2 + 1e-6), 2 * math.pi * 2 / (3 + 1e-6)
    for ours, angle in ((row, angle_row), (column, angle_column)):
        expected = [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
        torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_temporal_encoding_adds_the_frame() -> None:
    plain = PositionEncoding(8)(1, 2, 2, torch.device("cpu"))
    clip = PositionEncoding(8, temporal=True)(3, 2, 2, torch.device("cpu")).view(3, 4, 8)
    added = clip - plain
    torch.testing.assert_close(added, added[:, :1].expand(-1, 4, -1), atol=1e-6, rtol=0)
    assert not torch.allclose(added[0], added[1])


def test_encoding_cached_in_inference_serves_training() -> None:
    position = PositionEncoding(8)
    with torch.inference_mode():
        position(1, 2, 2, torch.device("cpu"))
    weight = torch.ones(4, 8, requires_grad=True)
    (weight * position(1, 2, 2, torch.device("cpu"))).sum().backward()
    assert weight.grad is not None
