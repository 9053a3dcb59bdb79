"""Video instance segmentation: clip datasets and their metric, clips of any length, tracks and result files."""

from __future__ import annotations

from detectron2.data import get_detection_dataset_dicts

# Both loaders under the names of the reference implementation, which has separate ones for images and clips.
from ..data.build import build_test_loader as build_detection_test_loader
from ..data.build import build_train_loader as build_detection_train_loader
from ..data.dataset_mappers.clip_mappers import CocoClipDatasetMapper, YTVISDatasetMapper
from ..evaluation.video_ap import VideoScores, evaluate_videos
from ..evaluation.ytvis_evaluation import YTVISEvaluator

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
