"""Datasets, mappers and loaders of videos, and their evaluation."""

from . import datasets
from .build import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from .dataset_mapper import CocoClipDatasetMapper, YTVISDatasetMapper
from .ytvis_eval import YTVISEvaluator

__all__ = [
    "CocoClipDatasetMapper",
    "YTVISDatasetMapper",
    "YTVISEvaluator",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "datasets",
    "get_detection_dataset_dicts",
]
