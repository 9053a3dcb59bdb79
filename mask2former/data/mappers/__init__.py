"""Dataset mappers by the names that INPUT.DATASET_MAPPER_NAME knows."""

from __future__ import annotations

import difflib

from detectron2.config import CfgNode

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


def mapper_names() -> list[str]:
    """The values that INPUT.DATASET_MAPPER_NAME may take."""
    return sorted(MAPPERS)


def build_mapper(cfg: CfgNode, is_train: bool = True) -> SegmentationMapper:
    """The mapper that a config asks for.

    Args:
        cfg: INPUT.DATASET_MAPPER_NAME chooses it in training; inference needs no choice.
        is_train: for training, with targets, or for inference.

    Raises:
        ValueError: unknown name.
    """
    if not is_train:
        return SegmentationMapper(cfg, False)
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        near = difflib.get_close_matches(name, MAPPERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME {name!r} is not one of {', '.join(mapper_names())}{hint}"
        )
    return MAPPERS[name](cfg, True)
