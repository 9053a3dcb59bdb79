"""Dataset mappers by the names that INPUT.DATASET_MAPPER_NAME knows."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode

from ...utils.hints import did_you_mean
from ..mapped_dataset import Mapper
from . import clip_mappers
from .base import SegmentationMapper
from .lsj import COCOInstanceNewBaselineDatasetMapper, COCOPanopticNewBaselineDatasetMapper
from .mask_former import (
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)

MAPPERS: dict[str, type[SegmentationMapper]] = {
    "coco_instance_lsj": COCOInstanceNewBaselineDatasetMapper,
    "coco_panoptic_lsj": COCOPanopticNewBaselineDatasetMapper,
    "mask_former_instance": MaskFormerInstanceDatasetMapper,
    "mask_former_panoptic": MaskFormerPanopticDatasetMapper,
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
}

__all__ = [
    "MAPPERS",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "SegmentationMapper",
    "build_mapper",
    "mapper_names",
]


# Of video models. The first is taken where INPUT.DATASET_MAPPER_NAME has its default, as in the published configs.
VIDEO_MAPPERS = ("ytvis", "coco_clip", "mixed_clips")
_DEFAULT = "mask_former_semantic"


def mapper_names(video: bool = False) -> list[str]:
    """The values that INPUT.DATASET_MAPPER_NAME may take for image models, or for video models."""
    return sorted((_DEFAULT, *VIDEO_MAPPERS)) if video else sorted(MAPPERS)


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Mapper:
    """The mapper that a config asks for.

    Args:
        cfg: INPUT.DATASET_MAPPER_NAME chooses it in training; inference needs no choice.
        is_train: for training, with targets, or for inference.

    Raises:
        ValueError: unknown name.
    """
    video = cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if is_train and name not in mapper_names(video):
        hint = did_you_mean(name, mapper_names(video))
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME {name!r} is not one of {', '.join(mapper_names(video))}, "
            f"those for MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}.{hint}"
        )
    if video:
        return _video_mapper(name if is_train else "ytvis")(cfg, is_train)
    return MAPPERS[name](cfg, True) if is_train else SegmentationMapper(cfg, False)


def _video_mapper(name: str) -> Callable[[CfgNode, bool], Mapper]:
    kinds = {"coco_clip": clip_mappers.CocoClipDatasetMapper, "mixed_clips": clip_mappers.MixedClipDatasetMapper}
    return kinds.get(name, clip_mappers.YTVISDatasetMapper)
