"""The transformer of DETR (arXiv 2005.12872, section 3.2 and appendix A.3), as MaskFormer v1 uses it.

Sequences come first: (S, B, C). Layers name their attention and feed-forward weights (`self_attn`, `linear1`, `norm1`,
...) as the published checkpoints do. In masks True blocks attention, as in torch's own layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Attention, _get_activation_fn, with_position
from .position_encoding import PositionEmbeddingSine


class _Layer(nn.Module):
    """Base of both layer types: self-attention, a feed-forward network, and their norms.

    `forward_post` and `forward_pre` take the arguments of `forward`, by position or by name.

    Args:
        d_model: C.
        nhead: heads of the attention.
        dim_feedforward: hidden channels of the feed-forward network.
        activation: "relu" or "gelu".
        normalize_before: layer norm before each block instead of after it.
    """

    with_pos_embed = staticmethod(with_position)

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(d_model, nhead, dropout)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.activation = _get_activation_fn(activation)
        self.normalize_before = normalize_before
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def _blocks(self, pre_norm: bool, *arguments: Any, **keywords: Any) -> Tensor:
        raise NotImplementedError

    def forward_post(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Apply the blocks, each with a layer norm after the sum."""
        return self._blocks(False, *arguments, **keywords)

    def forward_pre(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Apply the blocks, each to its normalized input."""
        return self._blocks(True, *arguments, **keywords)

    def _run(self, *arguments: Any) -> Tensor:
        return self.forward_pre(*arguments) if self.normalize_before else self.forward_post(*arguments)

    def _self_attention(
        self, x: Tensor, pos: Tensor | None, attn_mask: Tensor | None, padding_mask: Tensor | None
    ) -> Tensor:
        q = self.with_pos_embed(x, pos)
        return self.dropout1(self.self_attn(q, q, x, attn_mask=attn_mask, key_padding_mask=padding_mask)[0])

    def _feed_forward(self, x: Tensor, dropout: nn.Module) -> Tensor:
        return dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerEncoderLayer(_Layer):
    """Self-attention of the tokens, then a feed-forward network, both residual; arguments as in `_Layer`."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        """Encode `src` (S, B, C).

        Args:
            src_mask: (S, S) or (B * heads, S, S): bool, True where attention is blocked, or float, added to the
                attention logits.
            src_key_padding_mask: bool (B, S), True for tokens that nothing attends to.
            pos: (S, B or 1, C), added to queries and keys.

        Returns:
            (S, B, C).
        """
        return self._run(src, src_mask, src_key_padding_mask, pos)

    def _blocks(
        self,
        pre_norm: bool,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        x = residual(src, lambda y: self._self_attention(y, pos, src_mask, src_key_padding_mask), self.norm1, pre_norm)
        return residual(x, lambda y: self._feed_forward(y, self.dropout2), self.norm2, pre_norm)


class TransformerDecoderLayer(_Layer):
    """Self-attention of the queries, attention to the memory, then a feed-forward network, all residual.

    Arguments are those of `_Layer`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__(d_model, nhead, dim_feedforward, dropout, activation, normalize_before)
        self.multihead_attn = Attention(d_model, nhead, dropout)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout3 = nn.Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Decode the queries `tgt` (Q, B, C), which attend to `memory` (S, B, C).

        Masks are those of `TransformerEncoderLayer`; `query_pos` (Q, B or 1, C) is added to queries, `pos`
        (S, B or 1, C) to the keys of the memory. Returns (Q, B, C).
        """
        masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        return self._run(tgt, memory, *masks, pos, query_pos)

    def _blocks(
        self,
        pre_norm: bool,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        def attend_to_memory(y: Tensor) -> Tensor:
            query, key = self.with_pos_embed(y, query_pos), self.with_pos_embed(memory, pos)
            masks = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask}
            return self.dropout2(self.multihead_attn(query, key, memory, **masks)[0])

        def attend_to_queries(y: Tensor) -> Tensor:
            return self._self_attention(y, query_pos, tgt_mask, tgt_key_padding_mask)

        x = residual(tgt, attend_to_queries, self.norm1, pre_norm)
        x = residual(x, attend_to_memory, self.norm2, pre_norm)
        return residual(x, lambda y: self._feed_forward(y, self.dropout3), self.norm3, pre_norm)


class TransformerEncoder(nn.Module):
    """Stack of encoder layers, which start as copies of one, and a norm at the end if one is given."""

    def __init__(self, encoder_layer: nn.Module, num_layers: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = _get_clones(encoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        """Encode (S, B, C) -> (S, B, C); arguments as in `TransformerEncoderLayer`."""
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, pos=pos)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(nn.Module):
    """Stack of decoder layers, which start as copies of one.

    Args:
        norm: applied to the queries that are returned.
        return_intermediate: return the queries after each layer, not only after the last one.
    """

    def __init__(
        self,
        decoder_layer: nn.Module,
        num_layers: int,
        norm: nn.Module | None = None,
        return_intermediate: bool = False,
    ) -> None:
        super().__init__()
        self.layers = _get_clones(decoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm
        self.return_intermediate = return_intermediate

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Return the queries (layers or 1, Q, B, C); arguments as in `TransformerDecoderLayer`."""
        states = []
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                pos=pos,
                query_pos=query_pos,
            )
            states.append(tgt)
        states = states if self.return_intermediate else [tgt]
        return torch.stack(states if self.norm is None else [self.norm(state) for state in states])


class Transformer(nn.Module):
    """Encoder of a feature map, and decoder of queries.

    Args:
        num_encoder_layers: may be 0.
        return_intermediate_dec: return the queries after each decoder layer.
        others: see `_Layer`.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
        return_intermediate_dec: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.nhead = nhead
        encoder_layer = TransformerEncoderLayer(d_model, nhead, dim_feedforward, dropout, activation, normalize_before)
        encoder_norm = nn.LayerNorm(d_model) if normalize_before else None
        self.encoder = TransformerEncoder(encoder_layer, num_encoder_layers, encoder_norm)
        decoder_layer = TransformerDecoderLayer(d_model, nhead, dim_feedforward, dropout, activation, normalize_before)
        self.decoder = TransformerDecoder(
            decoder_layer, num_decoder_layers, nn.LayerNorm(d_model), return_intermediate=return_intermediate_dec
        )
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        reset_matrices(self)

    def forward(
        self, src: Tensor, mask: Tensor | None, query_embed: Tensor, pos_embed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode queries from a map.

        Args:
            src: (B, C, H, W).
            mask: bool (B, H, W), True where an image is padded, or None.
            query_embed: (Q, C), the positions of the queries, which start from zero.
            pos_embed: (B or 1, C, H, W).

        Returns:
            The queries after each layer, or the last one, (layers or 1, B, Q, C), and the encoded map (B, C, H, W).
        """
        padding = None if mask is None else mask.flatten(1)
        position = encoding_to_sequence(pos_embed).to(src.dtype)
        memory = self.encoder(map_to_sequence(src), src_key_padding_mask=padding, pos=position)
        query_pos = query_embed[:, None].expand(-1, src.shape[0], -1)
        states = self.decoder(
            torch.zeros_like(query_pos), memory, memory_key_padding_mask=padding, pos=position, query_pos=query_pos
        )
        return states.transpose(1, 2), sequence_to_map(memory, src)


def _get_clones(module: nn.Module, N: int) -> nn.ModuleList:
    """Return N copies of a module."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(N))


def reset_matrices(module: nn.Module) -> None:
    """Initialize all matrices of a module (Xavier, uniform): copies of a layer must not start alike."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def map_to_sequence(x: Tensor) -> Tensor:
    """Return a map (B, C, H, W) as a sequence (H * W, B, C)."""
    return x.flatten(2).permute(2, 0, 1).contiguous()


def sequence_to_map(x: Tensor, like: Tensor) -> Tensor:
    """Invert `map_to_sequence`; `like` has the height and width."""
    return x.permute(1, 2, 0).unflatten(2, like.shape[-2:])


def one_for_all(encoding: Tensor) -> Tensor:
    """Return an encoding (B, ...) that was expanded from that of one image as (1, ...), and others as they are."""
    return encoding[:1] if encoding.stride(0) == 0 else encoding


def encoding_to_sequence(encoding: Tensor) -> Tensor:
    """Return a position encoding (B, C, H, W) as (H * W, B or 1, C)."""
    return one_for_all(encoding).flatten(2).permute(2, 0, 1)


def as_one_map(maps: Sequence[Tensor], encoding: PositionEmbeddingSine, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Put feature maps together for `Transformer`, each with its position encoding.

    Args:
        maps: (B * T, C, H', W') each, with the same C.
        encoding: called with a map; for clips and several maps its `tokens` are used.
        frames: T; the frames of a clip are one sequence.

    Returns:
        A map (B, C, H, W) and its position encoding: the only map as it is, others as a map (B, C, S, 1) with S the
        sum of T H' W'.
    """
    if len(maps) == 1 and frames == 1:
        return maps[0], encoding(maps[0])
    rows = [m.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2) for m in maps]  # (B, C, T H' W')
    tokens = [encoding.tokens(frames, m.shape[2], m.shape[3], m.device) for m in maps]  # (T H' W', C)
    return torch.cat(rows, dim=2)[..., None], torch.cat(tokens).T[None, ..., None]


def residual(x: Tensor, step: Callable[[Tensor], Tensor], norm: nn.Module, pre_norm: bool) -> Tensor:
    """Apply `step` with a residual connection, with the norm before `step` (`pre_norm`) or after the sum."""
    return x + step(norm(x)) if pre_norm else norm(x + step(x))
