"""The network and its parts; importing this registers them with detectron2."""

from .backbones import D2SwinTransformer, TimmBackbone
from .decoders import (
    MultiScaleMaskedTransformerDecoder,
    StandardTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)
from .decoders.per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead
from .head import MaskFormerHead
from .meta_arch import MaskFormer
from .pixel_decoders import BasePixelDecoder, MSDeformAttnPixelDecoder, TransformerEncoderPixelDecoder
from .test_time_augmentation import MaskFormerWithTTA, SemanticSegmentorWithTTA, with_tta
from .video import VideoMaskFormer

__all__ = [
    "BasePixelDecoder",
    "D2SwinTransformer",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MaskFormerWithTTA",
    "MultiScaleMaskedTransformerDecoder",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "SemanticSegmentorWithTTA",
    "StandardTransformerDecoder",
    "TimmBackbone",
    "TransformerEncoderPixelDecoder",
    "VideoMaskFormer",
    "VideoMultiScaleMaskedTransformerDecoder",
    "with_tta",
]
