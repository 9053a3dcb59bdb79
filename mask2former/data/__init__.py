"""Datasets, mappers and loaders."""

from __future__ import annotations

from ..errors import BadRecordError
from ..structures.masks import boxes_from_masks, segmentation_to_mask
from .build import build_test_loader, build_train_loader, skipped_records
from .dataset_mappers import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
    SegmentationMapper,
    build_mapper,
    mapper_names,
)
from .datasets import (
    dataset_root,
    load_coco_json,
    register_all,
    register_coco_json,
    register_from_config,
    register_images,
    register_panoptic,
    register_semantic_folder,
    register_ytvis_json,
)
from .image_io import read_image

__all__ = [
    "BadRecordError",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "SegmentationMapper",
    "boxes_from_masks",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "dataset_root",
    "mapper_names",
    "load_coco_json",
    "read_image",
    "register_all",
    "register_coco_json",
    "register_from_config",
    "register_panoptic",
    "register_semantic_folder",
    "register_ytvis_json",
    "segmentation_to_mask",
    "skipped_records",
]

# detectron2 registers its datasets at import too; a second call changes nothing.
register_images()
