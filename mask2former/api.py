"""The public names of the package, which registers its components and datasets with detectron2 at import."""

import warnings

try:
    import torch  # noqa: F401

    with warnings.catch_warnings():
        # detectron2 and fvcore call it at import; of torch 2.14 that is a FutureWarning, which users would see.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", Warning)
        import detectron2.modeling  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"mask2former needs PyTorch and detectron2, and one of them is missing or broken ({error}). One command "
        f"installs what is missing: mask2former setup   (or: python -m {__package__} setup)"
    ) from error

from . import data, modeling
from .config import add_maskformer2_config, add_maskformer2_video_config, load_config
from .config_validation import validate_config
from .data import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
    register_all,
    register_coco_json,
    register_panoptic,
    register_semantic_folder,
    register_ytvis_json,
)
from .evaluation import InstanceSegEvaluator
from .maskformer_model import MaskFormer
from .results import Result
from .segmenter import Segmenter
from .test_time_augmentation import MaskFormerWithTTA, SemanticSegmentorWithTTA
from .video import CocoClipDatasetMapper, YTVISDatasetMapper, YTVISEvaluator
from .video_maskformer_model import VideoMaskFormer

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "CocoClipDatasetMapper",
    "InstanceSegEvaluator",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "MaskFormerWithTTA",
    "Result",
    "Segmenter",
    "SemanticSegmentorWithTTA",
    "VideoMaskFormer",
    "YTVISDatasetMapper",
    "YTVISEvaluator",
    "add_maskformer2_config",
    "add_maskformer2_video_config",
    "data",
    "load_config",
    "modeling",
    "register_all",
    "register_coco_json",
    "register_panoptic",
    "register_semantic_folder",
    "register_ytvis_json",
    "validate_config",
]
