"""Building blocks that the pixel decoders and transformer decoders share.

Parameter names follow the published checkpoints (`in_proj_weight`, `linear1`, `norm`, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation function `name`, "relu" or "gelu"."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation '{name}'; choose from {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


class Attention(nn.Module):
    """Multi-head attention on `scaled_dot_product_attention` ("Attention is all you need", section 3.2).

    Args:
        dim: channels of queries, keys and values.
        heads: number of heads; must divide `dim`.
        dropout: dropout of the attention weights in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} must be a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from `query` (B, N, C) to `key`, `value` (B, S, C).

        Args:
            mask: added to the attention logits (float) or True where attention is allowed (bool);
                broadcastable to (B, heads, N, S).

        Returns:
            (B, N, C).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (self._split(F.linear(x, w, b)) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def with_position(x: Tensor, position: Tensor | None) -> Tensor:
    """Return `x` plus its position encoding, if there is one."""
    return x if position is None else x + position


def residual(x: Tensor, step: Callable[[Tensor], Tensor], norm: nn.Module, pre_norm: bool) -> Tensor:
    """Apply `step` with a residual connection, with the norm before `step` (`pre_norm`) or after the sum."""
    return x + step(norm(x)) if pre_norm else norm(x + step(x))


class _ResidualAttention(nn.Module):
    """Residual connection and layer norm after (or before, `pre_norm`) an attention."""

    def __init__(self, dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def _residual(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        return residual(x, lambda y: self.dropout(attend(y)), self.norm, self.pre_norm)


class SelfAttentionBlock(_ResidualAttention):
    """Self-attention of the queries."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(dim, dropout, pre_norm)
        self.self_attn = Attention(dim, heads, dropout)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Attend within `x` (B, N, C) with its position encoding (B, N, C); returns (B, N, C)."""

        def attend(y: Tensor) -> Tensor:
            q = with_position(y, position)
            return self.self_attn(q, q, y)

        return self._residual(x, attend)


class CrossAttentionBlock(_ResidualAttention):
    """Masked attention of the queries to a memory."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(dim, dropout, pre_norm)
        self.multihead_attn = Attention(dim, heads, dropout)

    def forward(
        self, x: Tensor, keys: Tensor, memory: Tensor, mask: Tensor | None = None, position: Tensor | None = None
    ) -> Tensor:
        """Attend from `x` (B, N, C) to `memory` (B, S, C).

        `position` (B, N, C) is added to queries; `keys` (B, S, C) is memory with position; mask as in `Attention`.
        """
        return self._residual(x, lambda y: self.multihead_attn(with_position(y, position), keys, memory, mask))


class FeedForwardBlock(nn.Module):
    """Residual two-layer perceptron with layer norm."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, act: str = "relu", pre_norm: bool = False) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.act = activation(act)
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, N, C) -> (B, N, C)."""
        return residual(x, self._expand, self.norm, self.pre_norm)

    def _expand(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.act(self.linear1(x)))))


class MLP(nn.Module):
    """Linear layers with ReLU between them; keys `layers.N`."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., in_dim) -> (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
