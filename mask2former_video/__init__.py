"""The video part of Mask2Former under the names of the reference implementation.

Classes and functions are those of `mask2former`, or small forms of them. Importing it registers VideoMaskFormer, its
decoder and the names of YouTube-VIS with detectron2, as defaults: a registration of the same name by a project wins.
"""

from . import modeling
from ._sibling import core
from .config import add_maskformer2_video_config
from .data_video import (
    CocoClipDatasetMapper,
    YTVISDatasetMapper,
    YTVISEvaluator,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from .video_maskformer_model import VideoMaskFormer

core("video_registration").VIDEO.activate()

__all__ = [
    "CocoClipDatasetMapper",
    "VideoMaskFormer",
    "YTVISDatasetMapper",
    "YTVISEvaluator",
    "add_maskformer2_video_config",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "modeling",
]
