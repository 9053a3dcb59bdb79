"""What video adds to images: data of clips and their metric, clips of any length, tracks and their files."""

from __future__ import annotations

from detectron2.data import get_detection_dataset_dicts

# The two loaders under the names of the reference implementation, which has one pair for pictures and one for clips.
from mask2former.data.loaders import build_test_loader as build_detection_test_loader
from mask2former.data.loaders import build_train_loader as build_detection_train_loader

from .evaluation import YTVISEvaluator
from .mappers import CocoClipDatasetMapper, YTVISDatasetMapper
from .video_ap import VideoScores, evaluate_videos

__all__ = [
    "CocoClipDatasetMapper",
    "VideoScores",
    "YTVISDatasetMapper",
    "YTVISEvaluator",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "evaluate_videos",
    "get_detection_dataset_dicts",
]
