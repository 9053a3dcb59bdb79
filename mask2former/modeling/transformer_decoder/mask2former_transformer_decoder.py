"""The transformer decoder of Mask2Former (arXiv 2112.01527, section 3.2), for images and clips alike.

Queries attend only inside the mask that the previous layer predicts, to one level after another. The memory of a clip
is all of its T frames (arXiv 2112.10764); an image is a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ...ops.masked_attention import blocked_keys
from ...ops.masked_attention import open_empty as _open_empty
from ...utils.overrides import as_written, extensible, unchanged
from ...utils.registry import register
from ...video_registration import VIDEO
from ..denoising import NoisedObjects
from ..outputs import DecoderOutputs, MaskLogits, earlier_outputs, layer_outputs, mask_logits
from .attention_masks import LevelMasks, attention_mask, resized, takes_one_mask_for_all_heads
from .layers import MLP, CrossAttentionLayer, FFNLayer, SelfAttentionLayer
from .layers import activation_function as _get_activation_fn
from .position_encoding import PositionEmbeddingSine, PositionEmbeddingSine3D, tokens_of
from .query_groups import QueryGroups, TrainingQueries
from .query_selection import QuerySelection, Selection
from .registry import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder, decoder_settings

__all__ = [
    "MLP",
    "TRANSFORMER_DECODER_REGISTRY",
    "CrossAttentionLayer",
    "FFNLayer",
    "MultiScaleMaskedTransformerDecoder",
    "SelfAttentionLayer",
    "VideoMultiScaleMaskedTransformerDecoder",
    "_get_activation_fn",
    "build_transformer_decoder",
]


@register(TRANSFORMER_DECODER_REGISTRY)
@extensible
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Masked-attention decoder.

    A subclass may override `forward_prediction_heads` or `_set_aux_loss`, and register hooks on every part; then masks
    are computed in every layer, and training takes more memory. `class_embed` is called once for all layers, or once a
    layer where it is hooked or no plain `nn.Linear`, and with `query_selection` for tokens before.

    Args:
        in_channels: channels C' of the incoming levels.
        mask_classification: must be True (per-pixel models have separate heads).
        num_classes: K; the class head predicts K + 1, no-object last.
        hidden_dim: C.
        num_queries: Q.
        dec_layers: number of layers (config DEC_LAYERS - 1, which counts the prediction before the first layer).
        mask_dim: channels of the mask features.
        enforce_input_project: project the levels even where C' = C.
        query_groups: groups of Q queries in training, each matched by itself; inference has the first one.
        denoising: training has denoising queries, for which `forward` gets `noised`.
        query_selection: the content of queries comes from the levels, see `QuerySelection`; there is no `query_feat`.
        mask_quality: predict the IoU of each mask and its object, see `mask_quality`; for images only.
    """

    num_feature_levels = 3
    position_type: type[PositionEmbeddingSine] = PositionEmbeddingSine

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
        query_groups: int = 1,
        denoising: bool = False,
        query_selection: bool = False,
        mask_quality: bool = False,
    ) -> None:
        super().__init__()
        if not mask_classification:
            raise ValueError("the masked-attention decoder requires mask_classification=True")
        self.mask_classification = mask_classification
        self.num_heads, self.num_layers, self.num_queries = nheads, dec_layers, num_queries
        self.pe_layer = self.position_type(hidden_dim // 2, normalize=True)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, normalize_before=pre_norm) for _ in range(dec_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, normalize_before=pre_norm) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, normalize_before=pre_norm) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        if not query_selection:
            self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.num_feature_levels, hidden_dim)
        self.input_proj = nn.ModuleList()
        for _ in range(self.num_feature_levels):
            project = in_channels != hidden_dim or enforce_input_project
            self.input_proj.append(Conv2d(in_channels, hidden_dim, kernel_size=1) if project else nn.Sequential())
            if project:
                weight_init.c2_xavier_fill(self.input_proj[-1])
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.training_queries: TrainingQueries | None = None
        if query_groups > 1 or denoising:
            classes = num_classes if denoising else 0
            self.training_queries = TrainingQueries(num_queries, hidden_dim, query_groups, classes)
        self.query_selection: QuerySelection | None = None
        if query_selection:
            self.query_selection = QuerySelection(in_channels, hidden_dim, num_queries)
        self.quality_embed = MLP(hidden_dim, hidden_dim, 1, 3) if mask_quality else None

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        settings = decoder_settings(cfg, in_channels, mask_classification) | {"dec_layers": node.DEC_LAYERS - 1}
        # Left out where they are off: constructors of other projects take what the reference implementation has.
        if node.QUERY_GROUPS > 1:
            settings["query_groups"] = node.QUERY_GROUPS
        if node.DENOISING.QUERIES:
            settings["denoising"] = True
        if node.QUERY_SELECTION:
            settings["query_selection"] = True
        if node.MASK_QUALITY.ENABLED:
            settings["mask_quality"] = True
        return settings

    def forward(
        self,
        x: Sequence[Tensor],
        mask_features: Tensor,
        mask: Tensor | None = None,
        *,
        frames: int | None = None,
        noised: NoisedObjects | None = None,
    ) -> DecoderOutputs:
        """Predict classes and masks of the queries.

        Args:
            x: three levels (B * T, C', H, W), coarsest first.
            mask_features: (B * T, mask_dim, H4, W4).
            mask: ignored; part of the interface of decoders.
            frames: T; None for images.
            noised: what the denoising queries are made of, in training.

        Returns:
            `DecoderOutputs`; mask logits, in inference those of the earlier layers, are computed where they are read.
            In training they may have "query_groups" and "denoising", see `QueryGroups.outputs`, and
            "query_selection", the prediction of the selected tokens.
            With `mask_quality` all predictions have "pred_quality", but for those of "denoising".
            Clips have in inference also "query_embeds" (B, Q, C): the states that the last prediction was
            computed from.
        """
        if len(x) != self.num_feature_levels:
            raise ValueError(f"the decoder requires {self.num_feature_levels} feature levels, got {len(x)}")
        features = mask_features.unflatten(0, (-1, frames or 1))  # (B, T, C, H4, W4)
        selection = self._selection(x, frames or 1)
        own = self._own_queries(x, features, selection)
        groups = self._groups(own, noised)
        if not unchanged(self, MultiScaleMaskedTransformerDecoder, "forward_prediction_heads", "_set_aux_loss"):
            if groups is not None or selection is not None:
                raise ValueError(
                    f"{type(self).__name__} replaces prediction heads, which know one group of queries: set "
                    "MODEL.MASK_FORMER.QUERY_GROUPS 1, MODEL.MASK_FORMER.DENOISING.QUERIES 0 and "
                    "MODEL.MASK_FORMER.QUERY_SELECTION False"
                )
            if self.quality_embed is not None:
                raise ValueError(
                    f"{type(self).__name__} replaces prediction heads, which predict no quality of masks: set "
                    "MODEL.MASK_FORMER.MASK_QUALITY.ENABLED False"
                )
            return self._outputs_of_overridden_heads(x, mask_features, features, frames is not None)
        small = [LevelMasks(mask_features, level.shape[-2:], frames or 1) for level in x]
        states: list[Tensor] = []
        embeds: list[Tensor] = []

        def predict(queries: Tensor, level: int, is_last: bool) -> Tensor | None:
            states.append(self.decoder_norm(queries).transpose(0, 1).contiguous())  # as linear layers want it
            embeds.append(self.mask_embed(states[-1]))
            if is_last:
                return None
            return blocked_keys(small[level].logits(embeds[-1]))[:, None]  # one for all heads

        self._decode(x, features, predict, own, groups)
        outputs = self._outputs(states, embeds, features, frames is not None, groups)
        if selection is not None and self.training:
            state = self.decoder_norm(selection.content)
            masks = MaskLogits(self.mask_embed(state), features, frames is not None)
            selected = DecoderOutputs(pred_logits=self.class_embed(state), pred_masks=masks)
            if self.quality_embed is not None:
                selected["pred_quality"] = self.quality_embed(state)[..., 0]
            outputs["query_selection"] = selected
        return outputs

    def _selection(self, x: Sequence[Tensor], frames: int) -> Selection | None:
        """Return the tokens that the queries begin with; None where that is learned."""
        if self.query_selection is None:
            return None
        return self.query_selection(  # type: ignore[no-any-return]
            x, frames, lambda content: self.class_embed(self.decoder_norm(content))
        )

    def _own_queries(
        self, x: Sequence[Tensor], features: Tensor, selection: Selection | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the queries that predict and their position encoding, (Q, B, C) each."""
        batch, frames = features.shape[:2]  # not len(), which would fix the batch of an export
        position = self.query_embed.weight[:, None].expand(-1, batch, -1)
        if selection is None:
            return self.query_feat.weight[:, None].expand(-1, batch, -1), position
        encoding = torch.cat([tokens_of(self.pe_layer, level, frames, self.position_type.temporal) for level in x])
        return selection.queries(), position + selection.of_tokens(encoding).to(position.dtype)

    def _groups(self, own: tuple[Tensor, Tensor], noised: NoisedObjects | None) -> QueryGroups | None:
        """Return all queries of a training step; None where there are only those that predict."""
        if not self.training or self.training_queries is None:
            return None
        return self.training_queries.join(*own, noised)

    def _decode(
        self,
        x: Sequence[Tensor],
        features: Tensor,
        predict: Any,
        own: tuple[Tensor, Tensor],
        groups: QueryGroups | None = None,
    ) -> None:
        """Run the layers, and `predict(queries, level, is_last)` between them.

        It returns the attention mask for `level`, which is not used if `is_last`.
        """
        memory, position = self._memory(x, features.shape[1])
        queries, query_pos = own if groups is None else (groups.queries, groups.position)
        mask = predict(queries, 0, self.num_layers == 0)
        for i in range(self.num_layers):
            level = i % self.num_feature_levels
            layer = self.transformer_cross_attention_layers[i]
            if groups is not None:
                mask = groups.guided(mask, i, x[level].shape[-2:])
            queries = layer(
                queries,
                memory[level],
                memory_mask=mask if takes_one_mask_for_all_heads(layer) else self._by_head(mask),
                memory_key_padding_mask=None,
                pos=position[level],
                query_pos=query_pos,
            )
            attend = self.transformer_self_attention_layers[i]
            if groups is None:
                queries = attend(queries, tgt_mask=None, tgt_key_padding_mask=None, query_pos=query_pos)
            else:
                queries = groups.self_attention(attend, queries, self.num_heads)
            queries = self.transformer_ffn_layers[i](queries)
            mask = predict(queries, (i + 1) % self.num_feature_levels, i + 1 == self.num_layers)

    def _by_head(self, blocked: Tensor) -> Tensor:
        """Return an attention mask (B, 1, Q, S) in the form (B * heads, Q, S) that `torch.nn` knows."""
        return blocked if blocked.dim() == 3 else blocked.expand(-1, self.num_heads, -1, -1).flatten(0, 1)

    def _memory(self, levels: Sequence[Tensor], frames: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return tokens (S, B, C), S = T H W, and their position encoding (S, 1 or B, C), of each level."""
        memory, position = [], []
        for i, x in enumerate(levels):
            tokens = self.input_proj[i](x).flatten(2) + self.level_embed.weight[i][None, :, None]
            tokens = tokens.unflatten(0, (-1, frames)).transpose(2, 3).flatten(1, 2)  # (B, T H W, C)
            memory.append(tokens.transpose(0, 1))
            position.append(tokens_of(self.pe_layer, x, frames, self.position_type.temporal).to(tokens.dtype))
        return memory, position

    def _outputs(
        self, states: list[Tensor], embeds: list[Tensor], features: Tensor, clip: bool, groups: QueryGroups | None
    ) -> DecoderOutputs:
        embeds = [embeds[-1], *embeds[:-1]]
        quality = None
        if self.quality_embed is not None:
            quality = self.quality_embed(torch.stack((states[-1], *states[:-1])))[..., 0]
        if groups is not None:
            return groups.outputs(self._classes(states), embeds, features, clip, quality)
        masks: list[Any] = [MaskLogits(e, features, clip) for e in embeds]
        more = {"query_embeds": states[-1]} if clip and not self.training else {}
        if not self.training:  # nobody leaves out the last ones
            masks[0] = masks[0].value()
        return layer_outputs(self._classes(states), masks, quality, **more)

    def _classes(self, states: list[Tensor]) -> Tensor | list[Tensor]:
        """Return the class logits (B, Q, K + 1) of the last layer, then of the others in order, stacked or listed."""
        if as_written(self.class_embed, nn.Linear, "forward"):
            return self.class_embed(torch.stack((states[-1], *states[:-1])))  # type: ignore[no-any-return]
        by_layer = [self.class_embed(state) for state in states]  # it may know (B, Q, C) alone
        return [by_layer[-1], *by_layer[:-1]]

    def forward_prediction_heads(
        self, output: Tensor, mask_features: Tensor, attn_mask_target_size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict classes and masks of queries; the computation of `forward`, which calls overridden forms of it.

        Args:
            output: queries (Q, B, C).
            mask_features: (B, mask_dim, H4, W4), or (B, T, mask_dim, H4, W4) of clips.
            attn_mask_target_size: (H, W) of the level that attends next.

        Returns:
            Class logits (B, Q, K + 1), mask logits (B, Q, H4, W4), or (B, Q, T, H4, W4) of clips, and the attention
            mask bool (B * heads, Q, T H W), True where a query does not attend, which may be everywhere.
        """
        clip = mask_features.dim() == 5
        features = mask_features if clip else mask_features[:, None]
        state = self.decoder_norm(output).transpose(0, 1)
        embeds = self.mask_embed(state)
        masks = mask_logits(embeds, features)
        small = resized(features.flatten(0, 1), attn_mask_target_size).unflatten(0, features.shape[:2])
        blocked = self._by_head(attention_mask(embeds, small)[:, None])
        return self.class_embed(state), masks if clip else masks[:, :, 0], blocked

    def _outputs_of_overridden_heads(
        self, x: Sequence[Tensor], mask_features: Tensor, features: Tensor, clip: bool
    ) -> DecoderOutputs:
        classes: list[Tensor] = []
        masks: list[Tensor] = []

        def predict(queries: Tensor, level: int, is_last: bool) -> Tensor:
            size = x[level].shape[-2:]
            given = features if clip else mask_features
            outputs = self.forward_prediction_heads(queries, given, attn_mask_target_size=size)
            classes.append(outputs[0])
            masks.append(outputs[1])
            return _open_empty(outputs[2])

        self._decode(x, features, predict, self._own_queries(x, features))
        earlier = self._set_aux_loss(classes if self.mask_classification else None, masks)
        return DecoderOutputs(pred_logits=classes[-1], pred_masks=masks[-1], aux_outputs=earlier)

    def _set_aux_loss(self, outputs_class: Sequence[Tensor] | None, outputs_seg_masks: Sequence[Tensor]) -> list[Any]:
        """Return the "aux_outputs" of the predictions of all layers, the first one first."""
        return earlier_outputs(outputs_class, outputs_seg_masks)


@register(TRANSFORMER_DECODER_REGISTRY, VIDEO)
class VideoMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Masked-attention decoder of clips, whose position encoding includes the frame.

    Args:
        num_frames: T in training, of calls that do not say it; in inference such a call is one clip.
        others: see `MultiScaleMaskedTransformerDecoder`.
    """

    position_type = PositionEmbeddingSine3D

    @configurable
    def __init__(
        self, in_channels: int, mask_classification: bool = True, *, num_frames: int = 2, **others: Any
    ) -> None:
        super().__init__(in_channels, mask_classification, **others)
        self.num_frames = num_frames

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        settings = super().from_config(cfg, in_channels, mask_classification)
        return settings | {"num_frames": cfg.INPUT.SAMPLING_FRAME_NUM}

    def forward(
        self,
        x: Sequence[Tensor],
        mask_features: Tensor,
        mask: Tensor | None = None,
        *,
        frames: int | None = None,
        noised: NoisedObjects | None = None,
    ) -> DecoderOutputs:
        """Predict classes and masks of the queries in clips; see `MultiScaleMaskedTransformerDecoder`.

        Args:
            frames: T; None: `num_frames` in training, all maps in inference.
            others: see `MultiScaleMaskedTransformerDecoder`.
        """
        if frames is None:
            frames = self.num_frames if self.training else len(mask_features)
        return super().forward(x, mask_features, mask, frames=frames, noised=noised)
