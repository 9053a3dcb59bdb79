"""The transformer decoder of clips."""

from .video_mask2former_transformer_decoder import VideoMultiScaleMaskedTransformerDecoder

__all__ = ["VideoMultiScaleMaskedTransformerDecoder"]
