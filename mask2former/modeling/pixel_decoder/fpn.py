"""The pixel decoders of MaskFormer v1 (arXiv 2107.06278, section 3.2): a feature pyramid, with or without a
transformer encoder on the coarsest map. The pyramid is that of FPN (arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...utils.registry import register
from ..transformer_decoder.position_encoding import PositionEmbeddingSine
from ..transformer_decoder.transformer import TransformerEncoder, map_tokens


def lateral_convolution(in_channels: int, channels: int, norm: str) -> Conv2d:
    """Build a lateral connection of the pyramid: 1x1 convolution and `norm` ("" for none)."""
    convolution = Conv2d(in_channels, channels, kernel_size=1, bias=norm == "", norm=get_norm(norm, channels))
    weight_init.c2_xavier_fill(convolution)
    return convolution


def output_convolution(in_channels: int, channels: int, norm: str) -> Conv2d:
    """Build an output convolution of the pyramid: 3x3 convolution, `norm` ("" for none) and ReLU."""
    convolution = Conv2d(
        in_channels,
        channels,
        kernel_size=3,
        padding=1,
        bias=norm == "",
        norm=get_norm(norm, channels),
        activation=F.relu,
    )
    weight_init.c2_xavier_fill(convolution)
    return convolution


@register(SEM_SEG_HEADS_REGISTRY)
class BasePixelDecoder(nn.Module):
    """Feature pyramid from the coarsest backbone map to the finest, on which the mask features are computed.

    Convolutions are `layer_N`, and `adapter_N` for the lateral ones; N counts from the finest map.

    Args:
        input_shape: name -> ShapeSpec of the backbone maps.
        conv_dim: channels of the pyramid.
        mask_dim: channels of the mask features.
        norm: norm of the pyramid's convolutions ("GN"; empty for none).
    """

    num_output_levels = 3

    @configurable
    def __init__(
        self, input_shape: Mapping[str, ShapeSpec], *, conv_dim: int = 256, mask_dim: int = 256, norm: str = "GN"
    ) -> None:
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)  # finest first
        *finer, coarsest = (input_shape[name].channels for name in self.in_features)
        for index, channels in enumerate(finer, start=1):
            self.add_module(f"adapter_{index}", lateral_convolution(channels, conv_dim, norm))
            self.add_module(f"layer_{index}", output_convolution(conv_dim, conv_dim, norm))
        self.add_module(f"layer_{len(self.in_features)}", output_convolution(coarsest, conv_dim, norm))
        self.mask_dim = mask_dim
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {k: v for k, v in input_shape.items() if k in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def encode(self, coarsest: Tensor) -> Tensor | None:
        """Return an encoding of the coarsest backbone map (B, C, H', W') that replaces it in the pyramid; here None."""
        return None

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Decode the backbone maps.

        Returns:
            Mask features (B, mask_dim, H4, W4), the encoded coarsest map (B, conv_dim, H', W') or None, and three
            levels (B, conv_dim, H', W'), coarsest first.
        """
        *finer, coarsest = self.in_features
        encoded = self.encode(features[coarsest])
        start = features[coarsest] if encoded is None else encoded
        levels = [getattr(self, f"layer_{len(self.in_features)}")(start)]
        for index in range(len(finer), 0, -1):
            lateral = getattr(self, f"adapter_{index}")(features[finer[index - 1]])
            up = F.interpolate(levels[-1], size=lateral.shape[-2:], mode="nearest")
            levels.append(getattr(self, f"layer_{index}")(lateral + up))
        return self.mask_features(levels[-1]), encoded, levels[: self.num_output_levels]

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Call `forward_features`."""
        return self.forward_features(features)


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
        norm: str = "GN",
    ) -> None:
        coarsest = max(input_shape, key=lambda name: input_shape[name].stride)
        encoded = ShapeSpec(channels=conv_dim, stride=input_shape[coarsest].stride)
        super().__init__({**input_shape, coarsest: encoded}, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.input_proj = Conv2d(input_shape[coarsest].channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        encoder = TransformerEncoder(
            transformer_enc_layers,
            conv_dim,
            heads=transformer_nheads,
            hidden=transformer_dim_feedforward,
            dropout=transformer_dropout,
            pre_norm=transformer_pre_norm,
        )
        self.transformer = nn.ModuleDict({"encoder": encoder})
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
        tokens = self.transformer["encoder"](*map_tokens([projected], self.pe_layer))
        return tokens.transpose(1, 2).unflatten(2, projected.shape[-2:])
