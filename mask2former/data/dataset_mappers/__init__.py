"""Dataset mappers by the values of INPUT.DATASET_MAPPER_NAME."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode

from ...utils.hints import did_you_mean
from ..mapped_dataset import Mapper
from .augmentations import large_scale_jitter, pad_to_square, resize_for_inference, shortest_edge_crop
from .clip_mappers import CocoClipDatasetMapper, MixedClipDatasetMapper, YTVISDatasetMapper
from .coco_instance_new_baseline_dataset_mapper import COCOInstanceNewBaselineDatasetMapper
from .coco_panoptic_new_baseline_dataset_mapper import COCOPanopticNewBaselineDatasetMapper
from .mask_former_instance_dataset_mapper import MaskFormerInstanceDatasetMapper
from .mask_former_panoptic_dataset_mapper import MaskFormerPanopticDatasetMapper
from .mask_former_semantic_dataset_mapper import MaskFormerSemanticDatasetMapper
from .segmentation_mapper import SegmentationMapper
from .targets import AugmentedImage, InstanceTargets, PanopticTargets, SemanticTargets, Targets

# Add a custom mapper here: a class, or a function of a config and `is_train`.
MAPPERS: dict[str, Callable[[CfgNode, bool], Mapper]] = {
    "coco_instance_lsj": COCOInstanceNewBaselineDatasetMapper,
    "coco_panoptic_lsj": COCOPanopticNewBaselineDatasetMapper,
    "mask_former_instance": MaskFormerInstanceDatasetMapper,
    "mask_former_panoptic": MaskFormerPanopticDatasetMapper,
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
}

# Mappers of video models.
VIDEO_MAPPERS: dict[str, Callable[[CfgNode, bool], Mapper]] = {
    "ytvis": YTVISDatasetMapper,
    "coco_clip": CocoClipDatasetMapper,
    "mixed_clips": MixedClipDatasetMapper,
    "mask_former_semantic": YTVISDatasetMapper,  # the default of the key, which the published video configs do not set
}

__all__ = [
    "MAPPERS",
    "VIDEO_MAPPERS",
    "AugmentedImage",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "CocoClipDatasetMapper",
    "InstanceTargets",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "MixedClipDatasetMapper",
    "PanopticTargets",
    "SegmentationMapper",
    "SemanticTargets",
    "Targets",
    "YTVISDatasetMapper",
    "build_mapper",
    "large_scale_jitter",
    "mapper_names",
    "pad_to_square",
    "resize_for_inference",
    "shortest_edge_crop",
]


def mapper_names(video: bool = False) -> list[str]:
    """Return the values of INPUT.DATASET_MAPPER_NAME for image models, or for video models."""
    return sorted(VIDEO_MAPPERS if video else MAPPERS)


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Mapper:
    """Build the mapper that a config asks for.

    The constructors of the mappers take what those of the reference implementation take. What the config says beside
    that, for example the number of classes, `SegmentationMapper.use_config` sets afterwards.

    Args:
        cfg: INPUT.DATASET_MAPPER_NAME names the mapper for training; inference has one mapper.
        is_train: build the mapper for training, with targets, instead of the one for inference.

    Raises:
        ValueError: unknown name.
    """
    video = cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
    if not is_train:
        return YTVISDatasetMapper(cfg, False) if video else SegmentationMapper(cfg, False)
    name, names = cfg.INPUT.DATASET_MAPPER_NAME, mapper_names(video)
    if name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME {name!r} is not one of {', '.join(names)}, "
            f"those for MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}.{hint}"
        )
    mapper = (VIDEO_MAPPERS if video else MAPPERS)[name](cfg, True)
    if isinstance(mapper, SegmentationMapper):
        mapper.use_config(cfg)
    return mapper
