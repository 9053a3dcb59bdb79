"""The pixel decoders of MaskFormer v1 (arXiv 2107.06278, section 3.2): a feature pyramid, with or without a
transformer encoder on the coarsest map. The pyramid is that of FPN (arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...utils.registry import register
from ..normalization import build_norm
from ..transformer_decoder.position_encoding import PositionEmbeddingSine
from ..transformer_decoder.transformer import (
    TransformerEncoder,
    TransformerEncoderLayer,
    encoding_to_sequence,
    map_to_sequence,
    reset_matrices,
    sequence_to_map,
)


def build_pixel_decoder(cfg: Any, input_shape: Any) -> nn.Module:
    """Build MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME; it must have `forward_features` (see ADVANCED_USAGE.md)."""
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    model = SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
    if not callable(getattr(model, "forward_features", None)):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME '{name}' has no method forward_features; see ADVANCED_USAGE.md"
        )
    return model


def lateral_convolution(in_channels: int, channels: int, norm: str | None) -> Conv2d:
    """Build a lateral connection of the pyramid: 1x1 convolution and `norm` ("" for none)."""
    convolution = Conv2d(in_channels, channels, kernel_size=1, bias=not norm, norm=build_norm(norm, channels))
    weight_init.c2_xavier_fill(convolution)
    return convolution


def output_convolution(in_channels: int, channels: int, norm: str | None) -> Conv2d:
    """Build an output convolution of the pyramid: 3x3 convolution, `norm` ("" for none) and ReLU."""
    convolution = Conv2d(
        in_channels,
        channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=build_norm(norm, channels),
        activation=F.relu,
    )
    weight_init.c2_xavier_fill(convolution)
    return convolution


def set_numbered(parent: nn.Module, name: str, modules: Sequence[nn.Module]) -> None:
    """Register modules, coarsest first, as `name_N`, where N counts from the finest, as in checkpoints."""
    for index, module in enumerate(reversed(modules), start=1):
        parent.add_module(f"{name}_{index}", module)


@register(SEM_SEG_HEADS_REGISTRY)
class BasePixelDecoder(nn.Module):
    """Feature pyramid from the coarsest backbone map to the finest, on which the mask features are computed.

    Convolutions are `layer_N`, and `adapter_N` for the lateral ones; N counts from the finest map.

    Args:
        input_shape: name -> ShapeSpec of the backbone maps.
        conv_dim: channels of the pyramid.
        mask_dim: channels of the mask features.
        norm: norm of the pyramid's convolutions ("GN"; empty for none).

    Attributes:
        in_features, feature_strides, feature_channels: of the maps, finest first.
        maskformer_num_feature_levels: number of levels that are returned.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str | None = "GN",
    ) -> None:
        super().__init__()
        by_stride = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in by_stride]
        self.feature_strides = [shape.stride for _, shape in by_stride]
        self.feature_channels = [shape.channels for _, shape in by_stride]
        # Their names count from the finest map, as checkpoints have them.
        *finer, coarsest = self.feature_channels
        for index, channels in enumerate(finer, start=1):
            self.add_module(f"adapter_{index}", lateral_convolution(channels, conv_dim, norm))
            self.add_module(f"layer_{index}", output_convolution(conv_dim, conv_dim, norm))
        self.add_module(f"layer_{len(self.in_features)}", output_convolution(coarsest, conv_dim, norm))
        self.mask_dim = mask_dim
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)
        self.maskformer_num_feature_levels = 3

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {k: v for k, v in input_shape.items() if k in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    @property
    def lateral_convs(self) -> list[nn.Module | None]:
        """Return the lateral convolutions, coarsest first; the coarsest map has none, but None."""
        count = len(self.in_features)
        return [None, *(self.get_submodule(f"adapter_{index}") for index in range(count - 1, 0, -1))]

    @lateral_convs.setter
    def lateral_convs(self, modules: Sequence[nn.Module | None]) -> None:
        set_numbered(self, "adapter", [module for module in modules if module is not None])

    @property
    def output_convs(self) -> list[nn.Module]:
        """Return the output convolutions, coarsest first."""
        return [self.get_submodule(f"layer_{index}") for index in range(len(self.in_features), 0, -1)]

    @output_convs.setter
    def output_convs(self, modules: Sequence[nn.Module]) -> None:
        set_numbered(self, "layer", modules)

    def encode(self, coarsest: Tensor) -> Tensor | None:
        """Return an encoding of the coarsest backbone map (B, C, H', W') that replaces it in the pyramid; here None."""
        return None

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Decode the backbone maps.

        Returns:
            Mask features (B, mask_dim, H4, W4), the encoded coarsest map (B, conv_dim, H', W') or None, and three
            levels (B, conv_dim, H', W'), coarsest first.
        """
        coarsest, *finer = reversed(self.in_features)
        encoded = self.encode(features[coarsest])
        levels = [self.output_convs[0](features[coarsest] if encoded is None else encoded)]
        for name, lateral_conv, output_conv in zip(finer, self.lateral_convs[1:], self.output_convs[1:], strict=True):
            assert lateral_conv is not None
            lateral = lateral_conv(features[name])
            up = F.interpolate(levels[-1], size=lateral.shape[-2:], mode="nearest")
            levels.append(output_conv(lateral + up))
        return self.mask_features(levels[-1]), encoded, levels[: self.maskformer_num_feature_levels]

    def forward(
        self, features: Mapping[str, Tensor], targets: object = None
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Call `forward_features`; `targets` has no effect, and is a part of the interface of detectron2's heads."""
        return self.forward_features(features)


class TransformerEncoderOnly(nn.Module):
    """Encoder of one feature map; arguments as in `TransformerEncoderLayer`."""

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.nhead = nhead
        layer = TransformerEncoderLayer(d_model, nhead, dim_feedforward, dropout, activation, normalize_before)
        norm = nn.LayerNorm(d_model) if normalize_before else None
        self.encoder = TransformerEncoder(layer, num_encoder_layers, norm)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        reset_matrices(self)

    def forward(self, src: Tensor, mask: Tensor | None, pos_embed: Tensor) -> Tensor:
        """Encode a map (B, C, H, W) by self-attention over all positions.

        Args:
            mask: bool (B, H, W), True where an image is padded, or None.
            pos_embed: position encoding (B or 1, C, H, W).
        """
        padding = None if mask is None else mask.flatten(1)
        position = encoding_to_sequence(pos_embed).to(src.dtype)
        memory = self.encoder(map_to_sequence(src), src_key_padding_mask=padding, pos=position)
        return sequence_to_map(memory, src)


@register(SEM_SEG_HEADS_REGISTRY)
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """A transformer encoder on the coarsest backbone map, then the pyramid.

    Args:
        transformer_dropout, transformer_nheads, transformer_dim_feedforward: settings of the encoder layers.
        transformer_enc_layers: number of encoder layers.
        transformer_pre_norm: layer norm before each block instead of after it.
        others: see `BasePixelDecoder`.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_dropout: float = 0.0,
        transformer_nheads: int = 8,
        transformer_dim_feedforward: int = 2048,
        transformer_enc_layers: int = 6,
        transformer_pre_norm: bool = False,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str | None = "GN",
    ) -> None:
        coarsest = max(input_shape, key=lambda name: input_shape[name].stride)
        encoded = ShapeSpec(channels=conv_dim, stride=input_shape[coarsest].stride)
        super().__init__({**input_shape, coarsest: encoded}, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.feature_channels[-1] = input_shape[coarsest].channels
        self.input_proj = Conv2d(input_shape[coarsest].channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.transformer = TransformerEncoderOnly(
            d_model=conv_dim,
            nhead=transformer_nheads,
            num_encoder_layers=transformer_enc_layers,
            dim_feedforward=transformer_dim_feedforward,
            dropout=transformer_dropout,
            normalize_before=transformer_pre_norm,
        )
        self.pe_layer = PositionEmbeddingSine(conv_dim // 2, normalize=True)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "transformer_dropout": node.DROPOUT,
            "transformer_nheads": node.NHEADS,
            "transformer_dim_feedforward": node.DIM_FEEDFORWARD,
            "transformer_enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "transformer_pre_norm": node.PRE_NORM,
        }

    def encode(self, coarsest: Tensor) -> Tensor:
        """Encode (B, C, H', W') -> (B, conv_dim, H', W') by self-attention over all positions."""
        projected = self.input_proj(coarsest)
        return self.transformer(projected, None, self.pe_layer(projected))
