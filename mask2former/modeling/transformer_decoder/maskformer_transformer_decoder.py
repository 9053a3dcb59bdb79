"""The transformer decoder of MaskFormer v1 (arXiv 2107.06278, section 3.2), that of DETR, without attention masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ...utils.overrides import extensible, unchanged
from ...utils.registry import register
from ..outputs import DecoderOutputs, MaskLogits, earlier_outputs, layer_outputs
from .layers import MLP
from .position_encoding import PositionEmbeddingSine
from .registry import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder, decoder_settings
from .transformer import Transformer, as_one_map

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "StandardTransformerDecoder", "build_transformer_decoder"]


@register(TRANSFORMER_DECODER_REGISTRY)
@extensible
class StandardTransformerDecoder(nn.Module):
    """Decoder whose queries attend to the complete feature map in every layer.

    A subclass may override `_set_aux_loss`; then the masks of every layer are computed.

    Args:
        in_channels: channels C' of the incoming map.
        mask_classification: predict a class for each query. If False, query k is the mask of class k, for
            `PerPixelBaselinePlusHead`.
        num_classes: K; the class head predicts K + 1, no-object last.
        hidden_dim: C.
        num_queries: Q.
        enc_layers: encoder layers on the incoming map; may be 0.
        dec_layers: decoder layers, each with a prediction (config DEC_LAYERS).
        pre_norm: layer norm before each block instead of after it.
        deep_supervision: return the predictions of the earlier layers in training.
        mask_dim: channels of the mask features.
        enforce_input_project: project the incoming map even where C' = C.
    """

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
        dropout: float,
        dim_feedforward: int,
        enc_layers: int,
        dec_layers: int,
        pre_norm: bool,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        super().__init__()
        self.mask_classification = mask_classification
        self.num_queries, self.deep_supervision = num_queries, deep_supervision
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        self.transformer = Transformer(
            d_model=hidden_dim,
            nhead=nheads,
            num_encoder_layers=enc_layers,
            num_decoder_layers=dec_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            normalize_before=pre_norm,
            return_intermediate_dec=deep_supervision,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj: nn.Module = nn.Sequential()
        if in_channels != hidden_dim or enforce_input_project:
            self.input_proj = Conv2d(in_channels, hidden_dim, kernel_size=1)
            weight_init.c2_xavier_fill(self.input_proj)
        if mask_classification:
            self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return decoder_settings(cfg, in_channels, mask_classification) | {
            "dropout": node.DROPOUT,
            "enc_layers": node.ENC_LAYERS,
            "dec_layers": node.DEC_LAYERS,
            "deep_supervision": node.DEEP_SUPERVISION,
        }

    def forward(
        self,
        x: Tensor | Sequence[Tensor],
        mask_features: Tensor,
        mask: Tensor | None = None,
        *,
        frames: int | None = None,
    ) -> dict[str, Any]:
        """Predict classes and masks of the queries.

        Args:
            x: map (B * T, C', H', W') to attend to, or several maps, which form one sequence.
            mask_features: (B * T, mask_dim, H4, W4).
            mask: ignored, as in the masked-attention decoder.
            frames: T; None for images.

        Returns:
            The outputs of `MultiScaleMaskedTransformerDecoder`, with DEC_LAYERS predictions; without
            `mask_classification` they have no "pred_logits".
        """
        maps = [x] if isinstance(x, Tensor) else x
        src, position = as_one_map([self.input_proj(m) for m in maps], self.pe_layer, frames or 1)
        states, _ = self.transformer(src, None, self.query_embed.weight, position)
        features = mask_features.unflatten(0, (-1, frames or 1))  # (B, T, C, H4, W4)
        last_first = torch.cat((states[-1:], states[:-1])) if self.deep_supervision else states[-1:]
        masks: list[Any] = [MaskLogits(embeds, features, frames is not None) for embeds in self.mask_embed(last_first)]
        if not self.training:
            masks[0] = masks[0].value()
        if self.mask_classification:
            more = {"query_embeds": last_first[0]} if frames is not None and not self.training else {}
            outputs = layer_outputs(self.class_embed(last_first), masks, **more)
        else:
            outputs, *earlier = (DecoderOutputs(pred_masks=m) for m in masks)
            outputs["aux_outputs"] = earlier
        if self.deep_supervision and not unchanged(self, StandardTransformerDecoder, "_set_aux_loss"):
            layers = [*outputs["aux_outputs"], outputs]
            classes = torch.stack([layer["pred_logits"] for layer in layers]) if self.mask_classification else None
            outputs["aux_outputs"] = self._set_aux_loss(classes, torch.stack([x["pred_masks"] for x in layers]))
        return outputs

    @property
    def aux_loss(self) -> bool:
        """Return `deep_supervision`, under the name that other projects read."""
        return self.deep_supervision

    def _set_aux_loss(self, outputs_class: Tensor | None, outputs_seg_masks: Tensor) -> list[Any]:
        """Return the "aux_outputs" of class logits (L, B, Q, K + 1) and mask logits (L, B, Q, H4, W4) of all layers."""
        return earlier_outputs(outputs_class, outputs_seg_masks)
