"""The encoder and the decoder of DETR (arXiv 2005.12872, section 3.2 and appendix A.3), as MaskFormer v1 uses them.

Their layers keep attention and feed-forward weights side by side (`self_attn`, `linear1`, `norm1`, ...), as the
published checkpoints do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, residual, with_position
from .position_encoding import PositionEncoding


class _Layer(nn.Module):
    """What both kinds of layer have: self-attention, a feed-forward network, and their norms."""

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
        return self.dropout(self.self_attn(q, q, x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class EncoderLayer(_Layer):
    """Self-attention of the tokens, then a feed-forward network, both residual."""

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """`x` (B, N, C); `position`, broadcastable to it, joins queries and keys. Returns (B, N, C)."""
        x = residual(x, lambda y: self._self_attention(y, position), self.norm1, self.pre_norm)
        return residual(x, self._feed_forward, self.norm2, self.pre_norm)


class DecoderLayer(_Layer):
    """Self-attention of the queries, attention to the memory, then a feed-forward network, all residual."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(dim, heads, hidden, dropout, pre_norm)
        self.multihead_attn = Attention(dim, heads, dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, keys: Tensor, memory: Tensor, position: Tensor | None = None) -> Tensor:
        """`x`, `position` (B, Q, C); `keys` = memory with its position, `memory` (B, S, C). Returns (B, Q, C)."""

        def look(y: Tensor) -> Tensor:
            return self.dropout(self.multihead_attn(with_position(y, position), keys, memory))

        x = residual(x, lambda y: self._self_attention(y, position), self.norm1, self.pre_norm)
        x = residual(x, look, self.norm2, self.pre_norm)
        return residual(x, self._feed_forward, self.norm3, self.pre_norm)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; with `pre_norm`, whose layers leave their sum as it is, a norm at the end."""

    def __init__(
        self, num_layers: int, dim: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden, dropout, pre_norm) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim) if pre_norm else None

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        for layer in self.layers:
            x = layer(x, position)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers, and the norm that makes a prediction out of each layer's queries."""

    def __init__(
        self, num_layers: int, dim: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout, pre_norm) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, keys: Tensor, memory: Tensor, position: Tensor | None = None) -> list[Tensor]:
        """The normalized queries (B, Q, C) after each layer; arguments as in `DecoderLayer`."""
        states = []
        for layer in self.layers:
            x = layer(x, keys, memory, position)
            states.append(self.norm(x))
        return states


def map_tokens(maps: Sequence[Tensor], encoding: PositionEncoding, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Feature maps as one sequence, map after map, each with its own position encoding.

    Args:
        maps: (B * T, C, H', W') each, with the same C.
        frames: T; the frames of a clip are read together.

    Returns:
        tokens (B, S, C) with S the sum of T H' W', and their position encodings (S, C).
    """
    tokens = [m.flatten(2).unflatten(0, (-1, frames)).transpose(2, 3).flatten(1, 2) for m in maps]
    position = [encoding(frames, m.shape[2], m.shape[3], m.device) for m in maps]
    return torch.cat(tokens, dim=1), torch.cat(position).to(tokens[0].dtype)
