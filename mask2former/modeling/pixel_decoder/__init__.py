"""Pixel decoders, registered in detectron2's SEM_SEG_HEADS_REGISTRY."""

from typing import Any

from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from .fpn import BasePixelDecoder, TransformerEncoderPixelDecoder
from .msdeformattn import MSDeformAttnPixelDecoder

__all__ = [
    "BasePixelDecoder",
    "MSDeformAttnPixelDecoder",
    "TransformerEncoderPixelDecoder",
    "build_pixel_decoder",
]


def build_pixel_decoder(cfg: Any, input_shape: Any) -> nn.Module:
    """Build MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME; it must have `forward_features` (see ADVANCED_USAGE.md)."""
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    model = SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
    if not callable(getattr(model, "forward_features", None)):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME '{name}' has no method forward_features; see ADVANCED_USAGE.md"
        )
    return model
