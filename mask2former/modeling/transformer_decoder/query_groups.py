"""Queries that only a training has, beside those that predict: one-to-many groups and denoising queries.

Groups are copies of the query set with embeddings of their own, each matched one-to-one by itself, so that every object
teaches several queries a step (Group DETR, arXiv 2207.13085; H-DETR, arXiv 2207.13080, has the same aim with one larger
group). Denoising queries are described in `modeling/denoising.py`. All go through the layers of the decoder together.
They meet in self-attention only, which runs in each group by itself: no group sees another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..denoising import NoisedObjects
from ..outputs import DecoderOutputs, MaskLogits, layer_outputs


class TrainingQueries(nn.Module):
    """Embeddings of the queries that only a training has; checkpoints call it `training_queries`.

    Args:
        num_queries: Q of a group.
        hidden_dim: C.
        groups: number of groups, with that of the decoder itself.
        denoised_classes: K, for denoising queries; 0: there are none.
    """

    def __init__(self, num_queries: int, hidden_dim: int, groups: int = 1, denoised_classes: int = 0) -> None:
        super().__init__()
        self.groups = groups
        if groups > 1:
            self.query_feat = nn.Embedding((groups - 1) * num_queries, hidden_dim)
            self.query_embed = nn.Embedding((groups - 1) * num_queries, hidden_dim)
        if denoised_classes:
            self.label_feat = nn.Embedding(denoised_classes, hidden_dim)
            self.label_embed = nn.Embedding(1, hidden_dim)

    def join(self, queries: Tensor, position: Tensor, noised: NoisedObjects | None) -> QueryGroups:
        """Put the queries of a step together.

        Args:
            queries, position: (Q, B, C), those of the decoder and their position encoding.
            noised: the objects of denoising queries, or None.
        """
        size, batch, _ = queries.shape
        contents, positions = [queries], [position]
        if self.groups > 1:
            contents.append(self.query_feat.weight[:, None].expand(-1, batch, -1))
            positions.append(self.query_embed.weight[:, None].expand(-1, batch, -1))
        if noised is not None:
            contents.append(self.label_feat(noised.labels).transpose(0, 1))
            positions.append(self.label_embed.weight[:, None].expand(noised.labels.shape[1], batch, -1))
        return QueryGroups(torch.cat(contents), torch.cat(positions), self.groups, size, noised)


@dataclass(frozen=True)
class QueryGroups:
    """The queries of a step: G groups of Q, the decoder's own first, then E denoising queries.

    Attributes:
        queries, position: (G Q + E, B, C).
        count: G.
        size: Q.
        noised: what the denoising queries are made of; None: there are none.
    """

    queries: Tensor
    position: Tensor
    count: int
    size: int
    noised: NoisedObjects | None

    @property
    def _matched(self) -> int:
        return self.count * self.size

    def self_attention(self, layer: Callable[..., Tensor], queries: Tensor, heads: int) -> Tensor:
        """Run a self-attention layer on queries (G Q + E, B, C), within each group."""
        end = self._matched
        folded, position = (self._folded(x[:end]) for x in (queries, self.position))
        out = layer(folded, tgt_mask=None, tgt_key_padding_mask=None, query_pos=position)
        out = out.unflatten(1, (self.count, -1)).transpose(0, 1).flatten(0, 1)
        if self.noised is None:
            return out
        blocked = self.noised.blocked[:, None].expand(-1, heads, -1, -1).flatten(0, 1)
        noised = layer(queries[end:], tgt_mask=blocked, tgt_key_padding_mask=None, query_pos=self.position[end:])
        return torch.cat((out, noised))

    def _folded(self, queries: Tensor) -> Tensor:
        """Return (G Q, B, C) as (Q, G B, C): a group is to attention what another image is."""
        return queries.unflatten(0, (self.count, self.size)).transpose(0, 1).flatten(1, 2)

    def guided(self, mask: Tensor, layer: int, size: Sequence[int]) -> Tensor:
        """Return the attention mask (B, 1, G Q + E, S) with that of the objects, where this layer takes it.

        Args:
            mask: of the predicted masks.
            layer: number of the layer, from 0.
            size: (H, W) of its level.
        """
        if self.noised is None or layer >= self.noised.mask_layers:
            return mask
        blocked = self.noised.blocked_keys(int(size[0]), int(size[1]))
        return torch.cat((mask[:, :, : self._matched], blocked[:, None]), 2)

    def outputs(
        self,
        classes: Tensor | Sequence[Tensor],
        embeds: Sequence[Tensor],
        features: Tensor,
        clip: bool,
        quality: Tensor | None = None,
    ) -> DecoderOutputs:
        """Return the outputs of the decoder's own queries.

        They have also, where there are such queries, "query_groups", a list of the outputs of the other groups, and
        "denoising", the outputs of the denoising queries without the prediction before the first layer, which knows
        nothing of an object but its class.

        Args:
            classes: class logits (B, G Q + E, K + 1) of the layers, the last one first, then in order.
            embeds: query embeddings (B, G Q + E, C) in this order.
            features: mask features (B, T, C, H4, W4).
            clip: see `MaskLogits`.
            quality: that of masks (L, B, G Q + E) in this order, or None. It is not learned from denoising queries,
                which know where their object is.
        """

        def part(first: int, end: int, layers: Sequence[int]) -> DecoderOutputs:
            own_quality = quality[:, :, first:end] if quality is not None and end <= self._matched else None
            masks = [MaskLogits(embeds[i][:, first:end], features, clip) for i in layers]
            if isinstance(classes, Tensor):
                logits = classes if len(layers) == len(classes) else torch.cat((classes[:1], classes[2:]))
                return layer_outputs(logits[:, :, first:end], masks, own_quality)
            return layer_outputs([classes[i][:, first:end] for i in layers], masks, own_quality)

        layers, end = range(len(embeds)), self._matched
        own, *others = (part(first, first + self.size, layers) for first in range(0, end, self.size))
        if others:
            own["query_groups"] = others
        if self.noised is not None:
            own["denoising"] = part(end, end + self.noised.labels.shape[1], [0, *layers[2:]])
        return own
