"""Transformer decoders and their registry."""

from .mask2former_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)
from .maskformer_transformer_decoder import StandardTransformerDecoder
from .registry import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "MultiScaleMaskedTransformerDecoder",
    "StandardTransformerDecoder",
    "VideoMultiScaleMaskedTransformerDecoder",
    "build_transformer_decoder",
]
