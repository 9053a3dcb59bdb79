"""Transformer decoders and their registry."""

from typing import Any

from torch import nn

from .mask2former_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)
from .maskformer_transformer_decoder import StandardTransformerDecoder
from .registry import TRANSFORMER_DECODER_REGISTRY

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "MultiScaleMaskedTransformerDecoder",
    "StandardTransformerDecoder",
    "VideoMultiScaleMaskedTransformerDecoder",
    "build_transformer_decoder",
]


def build_transformer_decoder(cfg: Any, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Build MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME for levels of `in_channels` channels."""
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    return TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, in_channels, mask_classification)
