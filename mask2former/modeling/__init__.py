"""The network and its parts; importing this registers them with detectron2."""

from .backbones import D2SwinTransformer, TimmBackbone
from .decoders import MultiScaleMaskedTransformerDecoder, VideoMultiScaleMaskedTransformerDecoder
from .head import MaskFormerHead
from .meta_arch import MaskFormer
from .pixel_decoders import MSDeformAttnPixelDecoder

__all__ = [
    "D2SwinTransformer",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "TimmBackbone",
    "VideoMultiScaleMaskedTransformerDecoder",
]
