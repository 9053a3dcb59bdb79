"""Pixel decoders, registered in detectron2's SEM_SEG_HEADS_REGISTRY."""

from .fpn import BasePixelDecoder, TransformerEncoderPixelDecoder, build_pixel_decoder
from .msdeformattn import MSDeformAttnPixelDecoder

__all__ = [
    "BasePixelDecoder",
    "MSDeformAttnPixelDecoder",
    "TransformerEncoderPixelDecoder",
    "build_pixel_decoder",
]
