"""Components of the network; importing this package registers them with detectron2."""

from .backbone import D2SwinTransformer, TimmBackbone
from .meta_arch.mask_former_head import MaskFormerHead
from .meta_arch.per_pixel_baseline import PerPixelBaselineHead, PerPixelBaselinePlusHead
from .pixel_decoder import BasePixelDecoder, MSDeformAttnPixelDecoder, TransformerEncoderPixelDecoder
from .transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    StandardTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)

__all__ = [
    "BasePixelDecoder",
    "D2SwinTransformer",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "StandardTransformerDecoder",
    "TimmBackbone",
    "TransformerEncoderPixelDecoder",
    "VideoMultiScaleMaskedTransformerDecoder",
]
