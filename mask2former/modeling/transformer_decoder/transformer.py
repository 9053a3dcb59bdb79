"""The encoder and the decoder of DETR (arXiv 2005.12872, section 3.2 and appendix A.3), as MaskFormer v1 uses them.

Layers name their attention and feed-forward weights (`self_attn`, `linear1`, `norm1`, ...) as the published checkpoints
do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention
from .position_encoding import PositionEmbeddingSine


def with_position(x: Tensor, position: Tensor | None) -> Tensor:
    """Return `x` plus its position encoding, if there is one."""
    return x if position is None else x + position


def residual(x: Tensor, step: Callable[[Tensor], Tensor], norm: nn.Module, pre_norm: bool) -> Tensor:
    """Apply `step` with a residual connection, with the norm before `step` (`pre_norm`) or after the sum."""
    return x + step(norm(x)) if pre_norm else norm(x + step(x))


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from sequences (B, N, C), batch first."""
    return attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1))[0].transpose(0, 1)


class _Layer(nn.Module):
    """Base of both layer types: self-attention, a feed-forward network, and their norms."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def _self_attention(self, x: Tensor, position: Tensor | None) -> Tensor:
        q = with_position(x, position)
        return self.dropout(_attend(self.self_attn, q, q, x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class EncoderLayer(_Layer):
    """Self-attention of the tokens, then a feed-forward network, both residual."""

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Encode `x` (B, N, C); `position`, broadcastable to it, is added to queries and keys. Returns (B, N, C)."""
        x = residual(x, lambda y: self._self_attention(y, position), self.norm1, self.pre_norm)
        return residual(x, self._feed_forward, self.norm2, self.pre_norm)


class DecoderLayer(_Layer):
    """Self-attention of the queries, attention to the memory, then a feed-forward network, all residual."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(dim, heads, hidden, dropout, pre_norm)
        self.multihead_attn = Attention(dim, heads, dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, keys: Tensor, memory: Tensor, position: Tensor | None = None) -> Tensor:
        """Decode `x`, `position` (B, Q, C); `keys` is `memory` (B, S, C) with its position. Returns (B, Q, C)."""

        def attend(y: Tensor) -> Tensor:
            return self.dropout(_attend(self.multihead_attn, with_position(y, position), keys, memory))

        x = residual(x, lambda y: self._self_attention(y, position), self.norm1, self.pre_norm)
        x = residual(x, attend, self.norm2, self.pre_norm)
        return residual(x, self._feed_forward, self.norm3, self.pre_norm)


class TransformerEncoder(nn.Module):
    """Stack of encoder layers; with `pre_norm`, whose layers do not normalize their sum, a norm at the end."""

    def __init__(
        self, num_layers: int, dim: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden, dropout, pre_norm) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim) if pre_norm else None

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Encode (B, N, C) -> (B, N, C)."""
        for layer in self.layers:
            x = layer(x, position)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(nn.Module):
    """Stack of decoder layers, and the norm applied to the queries of each layer before prediction."""

    def __init__(
        self, num_layers: int, dim: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout, pre_norm) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, keys: Tensor, memory: Tensor, position: Tensor | None = None) -> list[Tensor]:
        """Return the normalized queries (B, Q, C) after each layer; arguments as in `DecoderLayer`."""
        states = []
        for layer in self.layers:
            x = layer(x, keys, memory, position)
            states.append(self.norm(x))
        return states


def map_tokens(maps: Sequence[Tensor], encoding: PositionEmbeddingSine, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Concatenate feature maps to one sequence, each map with its position encoding.

    Args:
        maps: (B * T, C, H', W') each, with the same C.
        frames: T; the frames of a clip form one sequence.

    Returns:
        Tokens (B, S, C) with S the sum of T H' W', and their position encodings (S, C).
    """
    tokens = [m.flatten(2).unflatten(0, (-1, frames)).transpose(2, 3).flatten(1, 2) for m in maps]
    position = [encoding.tokens(frames, m.shape[2], m.shape[3], m.device) for m in maps]
    return torch.cat(tokens, dim=1), torch.cat(position).to(tokens[0].dtype)
