"""The transformer decoder of Mask2Former (arXiv 2112.01527, section 3.2), for images and clips alike.

Queries attend only inside the mask that the previous layer predicts, to one level after another. The memory of a clip
is all of its T frames (arXiv 2112.10764); an image is a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ...utils.registry import register
from ...video_registration import VIDEO
from .layers import MLP, CrossAttentionBlock, FeedForwardBlock, SelfAttentionBlock
from .position_encoding import PositionEncoding
from .registry import TRANSFORMER_DECODER_REGISTRY, decoder_settings


@register(TRANSFORMER_DECODER_REGISTRY)
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Masked-attention decoder.

    Args:
        in_channels: channels C' of the incoming levels.
        mask_classification: must be True (per-pixel models have separate heads).
        num_classes: K; the class head predicts K + 1, no-object last.
        hidden_dim: C.
        num_queries: Q.
        dec_layers: number of layers (config DEC_LAYERS - 1, which counts the prediction before the first layer).
        mask_dim: channels of the mask features.
        enforce_input_project: project the levels even where C' = C.
    """

    num_levels = 3
    temporal = False

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        super().__init__()
        if not mask_classification:
            raise ValueError("the masked-attention decoder requires mask_classification=True")
        self.num_layers = dec_layers
        self.position = PositionEncoding(hidden_dim, temporal=self.temporal)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionBlock(hidden_dim, nheads, pre_norm=pre_norm) for _ in range(dec_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionBlock(hidden_dim, nheads, pre_norm=pre_norm) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardBlock(hidden_dim, dim_feedforward, pre_norm=pre_norm) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.num_levels, hidden_dim)
        self.input_proj = nn.ModuleList()
        for _ in range(self.num_levels):
            project = in_channels != hidden_dim or enforce_input_project
            self.input_proj.append(Conv2d(in_channels, hidden_dim, kernel_size=1) if project else nn.Sequential())
            if project:
                weight_init.c2_xavier_fill(self.input_proj[-1])
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        layers = cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1
        return decoder_settings(cfg, in_channels, mask_classification) | {"dec_layers": layers}

    def forward(
        self, levels: Sequence[Tensor], mask_features: Tensor, mask: Tensor | None = None, *, frames: int = 1
    ) -> dict[str, Any]:
        """Predict classes and masks of the queries.

        Args:
            levels: three maps (B * T, C', H, W), coarsest first.
            mask_features: (B * T, mask_dim, H4, W4).
            mask: ignored; part of the interface of decoders.
            frames: T.

        Returns:
            In training {"pred_logits" (B, Q, K + 1), "pred_embeds" (B, Q, mask_dim), "mask_features"
            (B, T, mask_dim, H4, W4), "aux_outputs": [{"pred_logits", "pred_embeds"} of each earlier prediction]}:
            mask logits are the products pred_embeds x mask_features, computed only where the loss needs them.
            Otherwise {"pred_logits", "pred_masks" (B, Q, T, H4, W4) before the sigmoid, "query_embeds" (B, Q, C):
            the states that both are computed from, "aux_outputs": []}.
        """
        if len(levels) != self.num_levels:
            raise ValueError(f"the decoder requires {self.num_levels} feature levels, got {len(levels)}")
        features = mask_features.unflatten(0, (-1, frames))  # (B, T, C, H4, W4)
        memory, keys, small = self._memory(levels, mask_features, frames)
        batch = features.shape[0]
        queries = self.query_feat.weight[None].expand(batch, -1, -1)
        position = self.query_embed.weight[None].expand(batch, -1, -1)
        states = [self.decoder_norm(queries)]
        embeds = [self.mask_embed(states[0])]
        for i in range(self.num_layers):
            level = i % self.num_levels
            allowed = attention_mask(embeds[-1], small[level])
            queries = self.transformer_cross_attention_layers[i](queries, keys[level], memory[level], allowed, position)
            queries = self.transformer_self_attention_layers[i](queries, position)
            queries = self.transformer_ffn_layers[i](queries)
            states.append(self.decoder_norm(queries))
            embeds.append(self.mask_embed(states[-1]))
        if self.training:
            return self._training_outputs(states, embeds, features)
        logits, masks = self.class_embed(states[-1]), mask_logits(embeds[-1], features)
        return {"pred_logits": logits, "pred_masks": masks, "query_embeds": states[-1], "aux_outputs": []}

    def _memory(
        self, levels: Sequence[Tensor], mask_features: Tensor, frames: int
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return, per level, tokens (B, T H W, C), tokens with position, and mask features (B, T, C, H, W) at its size.

        Mask logits are linear in the mask features, so the features are resized once per level instead of the
        logits once per layer.
        """
        memory, keys, small = [], [], []
        for i, x in enumerate(levels):
            height, width = x.shape[-2:]
            tokens = self.input_proj[i](x).flatten(2) + self.level_embed.weight[i][None, :, None]
            tokens = tokens.unflatten(0, (-1, frames)).transpose(2, 3).flatten(1, 2)  # (B, T H W, C)
            memory.append(tokens)
            keys.append(tokens + self.position(frames, height, width, x.device).to(tokens.dtype))
            with torch.no_grad():
                resized = F.interpolate(mask_features.float(), (height, width), mode="bilinear", align_corners=False)
            small.append(resized.unflatten(0, (-1, frames)))
        return memory, keys, small

    def _training_outputs(self, states: list[Tensor], embeds: list[Tensor], features: Tensor) -> dict[str, Any]:
        logits = self.class_embed(torch.stack(states)).unbind(0)
        predictions = [{"pred_logits": c, "pred_embeds": e} for c, e in zip(logits, embeds, strict=True)]
        return {**predictions[-1], "mask_features": features, "aux_outputs": predictions[:-1]}


@register(TRANSFORMER_DECODER_REGISTRY, VIDEO)
class VideoMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Masked-attention decoder whose position encoding includes the frame."""

    temporal = True


def mask_logits(embeds: Tensor, features: Tensor) -> Tensor:
    """Compute mask logits (B, Q, T, H, W), fp32, of query embeddings (B, Q, C) and mask features (B, T, C, H, W)."""
    with torch.autocast(embeds.device.type, enabled=False):
        batch, frames, channels, height, width = features.shape
        flat = features.float().transpose(1, 2).reshape(batch, channels, -1)
        return torch.bmm(embeds.float(), flat).view(batch, -1, frames, height, width)


@torch.no_grad()
def attention_mask(embeds: Tensor, features: Tensor) -> Tensor:
    """Compute where each query attends (equation 2): inside its mask, or everywhere if its mask is empty.

    Args:
        embeds: (B, Q, C); features: (B, T, C, H, W) at the level's size.

    Returns:
        bool (B, 1, Q, T * H * W), True where attention is allowed, the same for all heads.
    """
    blocked = mask_logits(embeds, features).flatten(2).sigmoid() < 0.5
    allowed = ~blocked | blocked.all(dim=-1, keepdim=True)
    return allowed[:, None]
