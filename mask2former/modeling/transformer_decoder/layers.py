"""Building blocks that the pixel decoders and transformer decoders share.

Sequences are (N, B, C), sequence first, and the constructors' and calls' arguments have the names that other projects
use for them (those of DETR and of the reference implementation). Parameter names follow the published checkpoints
(`in_proj_weight`, `linear1`, `norm`, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.masked_attention import has_kernel, masked_attention
from ...utils.overrides import extensible

logger = logging.getLogger(__name__)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "glu": F.glu}


def activation_function(activation: str) -> Callable[[Tensor], Tensor]:
    """Return the activation function of a name: "relu", "gelu" or "glu"."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation '{activation}'; choose from {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[activation]


_get_activation_fn = activation_function  # the name that other projects import


def with_position(tensor: Tensor, pos: Tensor | None) -> Tensor:
    """Return `tensor` plus its position encoding, if there is one."""
    return tensor if pos is None else tensor + pos


@extensible
class Attention(nn.Module):
    """Multi-head attention on `scaled_dot_product_attention` ("Attention is all you need", section 3.2).

    It is called as `torch.nn.MultiheadAttention` is, and has its parameters, but the fused kernels give no attention
    weights: they are None unless the attribute `need_weights` is True or the call asks for them.

    Args:
        dim: channels of queries, keys and values.
        heads: number of heads; must divide `dim`.
        dropout: dropout of the attention weights in training.
    """

    need_weights = False

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} must be a multiple of heads {heads}")
        self.embed_dim, self.num_heads, self.dropout = dim, heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` (N, B, C) to `key`, `value` (S, B, C).

        Args:
            key_padding_mask: bool (B, S), True where a key is ignored.
            need_weights: return the attention weights too, which takes more time and memory.
            attn_mask: True where attention is blocked (bool), or added to the attention logits (float); (N, S),
                (B * heads, N, S), or broadcastable to (B, heads, N, S). Queries that bool blocks everywhere give NaN,
                except that `masked_attention`, where it has a kernel, lets those of (B, 1, N, S) attend everywhere.
            average_attn_weights: of the heads.

        Returns:
            (N, B, C), and the weights (B, N, S), or (B, heads, N, S) without average, or None.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (self._project(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        dropout = self.dropout if self.training else 0.0
        need_weights = need_weights or self.need_weights
        plain = not need_weights and not dropout and key_padding_mask is None
        if plain and attn_mask is not None and _is_for_kernel(q, k, v, attn_mask):
            self._warn_of_hooks()
            return self.out_proj(masked_attention(q, k, v, attn_mask)).transpose(0, 1), None
        mask = self._mask(attn_mask, key_padding_mask, q.dtype)
        if need_weights:
            out, attention = _weighted(q, k, v, mask, dropout)
            attention = attention.mean(1) if average_attn_weights else attention
        else:
            self._warn_of_hooks()
            out, attention = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None
        # Some kernels store results batch first, others like the queries: neither needs a copy.
        if out.stride(0) > out.stride(2):
            return self.out_proj(out.transpose(1, 2).flatten(2)).transpose(0, 1), attention
        return self.out_proj(out.permute(2, 0, 1, 3).flatten(2)), attention

    def _project(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Project (N, B, C) and split it to (B, heads, N, C / heads); sequences stored as (B, N, C) are not copied."""
        if x.is_contiguous():
            return F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
        return F.linear(x.transpose(0, 1), weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the attention logits, which `scaled_dot_product_attention` would make of bool."""
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = padding[:, None, None]
            if attn_mask is None:
                attn_mask = padding
            elif attn_mask.dtype == torch.bool:
                attn_mask = attn_mask | padding
            else:
                attn_mask = attn_mask.masked_fill(padding, float("-inf"))
        if attn_mask is None:
            return None
        if attn_mask.dtype == torch.bool:
            return torch.zeros_like(attn_mask, dtype=dtype).masked_fill_(attn_mask, float("-inf"))
        return attn_mask.to(dtype)

    def _warn_of_hooks(self) -> None:
        if self._forward_hooks and not self.__dict__.get("_warned"):
            self._warned = True
            logger.warning(
                "A forward hook on an attention gets None as its attention weights, because fused kernels give none; "
                "set the attribute need_weights of this attention to True"
            )


def _is_for_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> bool:
    """Return whether `masked_attention` has a fast kernel for this: one bool mask for all heads, complete.

    It reads a mask once for up to 112 queries. On an H200 it takes 0.09 to 0.8 of the time of PyTorch's attention up to
    eight such groups, and as long from about sixteen on, where PyTorch's has enough to do for all of a GPU.
    """
    if not has_kernel(q, k, v):  # exporters, which have none, may have a batch of any size
        return False
    few = q.shape[0] * -(-q.shape[2] // 112) <= 8
    return few and mask.dtype == torch.bool and mask.shape == (q.shape[0], 1, q.shape[2], k.shape[2])


def _weighted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Attend as `scaled_dot_product_attention` does; return the result and the attention weights."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + mask
    weights = F.dropout(logits.softmax(-1), dropout)
    return weights @ v, weights


class _Residual(nn.Module):
    """Residual connection around `_step`, with a layer norm of the sum, or (`normalize_before`) of the input.

    `forward_post` and `forward_pre` take the arguments of `forward`, by position or by name.
    """

    normalize_before: bool
    norm: nn.LayerNorm
    with_pos_embed = staticmethod(with_position)

    def _step(self, tgt: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        raise NotImplementedError

    def forward_post(self, tgt: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """Apply the block, and normalize the sum."""
        return self.norm(tgt + self._step(tgt, *arguments, **keywords))

    def forward_pre(self, tgt: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """Apply the block to the normalized input."""
        return tgt + self._step(self.norm(tgt), *arguments, **keywords)

    def _run(self, *arguments: Any) -> Tensor:
        return self.forward_pre(*arguments) if self.normalize_before else self.forward_post(*arguments)


class _AttentionLayer(_Residual):
    """An attention, residual.

    Args:
        d_model: channels C.
        nhead: number of heads.
        dropout: of attention weights and of the result.
        activation: not used; other projects pass it.
        normalize_before: layer norm before the attention instead of after the sum.
    """

    attention: str  # name of the attention in checkpoints

    def __init__(
        self, d_model: int, nhead: int, dropout: float = 0.0, activation: str = "relu", normalize_before: bool = False
    ) -> None:
        super().__init__()
        self.add_module(self.attention, Attention(d_model, nhead, dropout))
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation_function(activation)
        self.normalize_before = normalize_before


class SelfAttentionLayer(_AttentionLayer):
    """Self-attention of the queries; arguments as for `_AttentionLayer`."""

    attention = "self_attn"
    self_attn: Attention

    def forward(
        self,
        tgt: Tensor,
        tgt_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Attend within `tgt` (Q, B, C), whose position encoding is `query_pos`; masks as in `Attention`."""
        return self._run(tgt, tgt_mask, tgt_key_padding_mask, query_pos)

    def _step(
        self,
        tgt: Tensor,
        tgt_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        q = self.with_pos_embed(tgt, query_pos)
        return self.dropout(self.self_attn(q, q, tgt, attn_mask=tgt_mask, key_padding_mask=tgt_key_padding_mask)[0])


@extensible
class CrossAttentionLayer(_AttentionLayer):
    """Masked attention of the queries to a memory; arguments as for `_AttentionLayer`."""

    attention = "multihead_attn"
    multihead_attn: Attention

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Attend from `tgt` (Q, B, C) to `memory` (S, B, C).

        Args:
            memory_mask, memory_key_padding_mask: as in `Attention`.
            pos, query_pos: position encodings of memory and queries.
        """
        return self._run(tgt, memory, memory_mask, memory_key_padding_mask, pos, query_pos)

    def _step(
        self,
        tgt: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        query, key = self.with_pos_embed(tgt, query_pos), self.with_pos_embed(memory, pos)
        masks = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask}
        return self.dropout(self.multihead_attn(query, key, memory, **masks)[0])


class FFNLayer(_Residual):
    """Two-layer perceptron, residual.

    Args:
        d_model: channels C.
        dim_feedforward: channels between the two layers.
        dropout: of both layers.
        activation: "relu" or "gelu".
        normalize_before: layer norm before the layers instead of after the sum.
    """

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation_function(activation)
        self.normalize_before = normalize_before
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tgt: Tensor) -> Tensor:
        """Transform (..., C) -> (..., C)."""
        return self._run(tgt)

    def _step(self, tgt: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(tgt)))))


class MLP(nn.Module):
    """Linear layers with ReLU between them; keys `layers.N`."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
