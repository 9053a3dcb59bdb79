"""How the instances of a model become objects: thresholds, duplicates, overlaps, parts and holes.

The rules are saved with a model (MODEL.MASK_FORMER.TEST.INSTANCES), so that the Python API, the command line and the
web give the same objects. Evaluation does not use them: average precision needs all candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from scipy import ndimage

from .errors import ConfigError
from .result_parts import InstanceResult
from .structures.mask_list import MaskList, intersection_area
from .structures.masks import Patch

COMPONENTS = ("all", "largest", "split")


@dataclass(frozen=True)
class ObjectRules:
    """Rules that make objects of instances; `apply` follows them in the order of the attributes.

    Attributes:
        score_threshold: 0 to 1; drop instances with a lower score.
        fill_holes: background that an object encloses becomes part of it.
        nms_iou: 0 to 1; drop an instance whose mask IoU with a better one of its class is larger; 1 keeps all.
        non_overlapping: assign each pixel to the best object only, and drop objects that lose more than `max_overlap`.
        max_overlap: 0 to 1, fraction of an object's area; read with `non_overlapping` only.
        components: what to do with masks of several unconnected parts: keep "all" as one object, keep the "largest"
            part, or "split" them into objects. Parts that touch at a corner are connected.
        min_area: pixels; drop smaller objects.
    """

    score_threshold: float = 0.5
    fill_holes: bool = False
    nms_iou: float = 1.0
    non_overlapping: bool = False
    max_overlap: float = 0.5
    components: str = "all"
    min_area: int = 0

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou", "max_overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, not {value!r}")
        if self.components not in COMPONENTS:
            raise ValueError(f"components must be one of {', '.join(COMPONENTS)}, not {self.components!r}")
        if isinstance(self.min_area, bool) or not isinstance(self.min_area, int) or self.min_area < 0:
            raise ValueError(f"min_area must be a number of pixels of at least 0, not {self.min_area!r}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ObjectRules:
        """Read MODEL.MASK_FORMER.TEST.INSTANCES; ConfigError for values out of range."""
        node = cfg.MODEL.MASK_FORMER.TEST.INSTANCES
        try:
            return cls(**{key.lower(): value for key, value in node.items()})
        except ValueError as error:
            raise ConfigError(f"MODEL.MASK_FORMER.TEST.INSTANCES: {error}") from error

    def changed(self, **values: Any) -> ObjectRules:
        """Return the rules with other values; those that are None stay as they are."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def apply(self, instances: InstanceResult) -> InstanceResult:
        """Return the objects, in the order of the instances that they come from."""
        objects = instances.select(instances.scores >= self.score_threshold)
        if self.fill_holes:
            objects = replace(objects, patches=MaskList(map(_filled, objects.patches), objects.patches.size))
        if self.nms_iou < 1.0:
            objects = without_duplicates(objects, self.nms_iou)
        if self.non_overlapping:
            objects = objects.without_overlap(self.max_overlap)
        if self.components != "all":
            objects = _by_component(objects, largest=self.components == "largest", min_area=self.min_area)
        if self.min_area > 0:
            objects = objects.select(objects.areas >= self.min_area)
        return objects


def without_duplicates(instances: InstanceResult, max_iou: float) -> InstanceResult:
    """Drop instances whose mask IoU with a better instance of the same class, itself kept, is above `max_iou`."""
    boxes, areas, patches = instances.boxes, instances.areas, instances.patches
    kept: list[int] = []
    for i in np.argsort(-instances.scores, kind="stable").tolist():
        others = np.array(kept, dtype=np.int64)
        near = others[(instances.labels[others] == instances.labels[i]) & _touching(boxes[others], boxes[i])]
        for j in near.tolist():
            shared = intersection_area(patches[i], patches[j])
            if shared > max_iou * (int(areas[i]) + int(areas[j]) - shared):
                break
        else:
            kept.append(i)
    return instances.select(np.array(sorted(kept), dtype=np.int64))


def _touching(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return bool (N,): which boxes (N, 4) XYXY share pixels with `box`."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    return np.asarray((high > low).all(axis=1))


def _filled(patch: Patch) -> Patch:
    return Patch(patch.top, patch.left, ndimage.binary_fill_holes(patch.bits)) if patch.bits.size else patch


def _parts(patch: Patch) -> Iterator[Patch]:
    """Yield the connected parts of a mask, largest first, each in its own bounding box."""
    if not patch.bits.size:
        return
    _, labels, stats, _ = cv2.connectedComponentsWithStats(patch.bits.astype(np.uint8), connectivity=8)
    for k in sorted(range(1, len(stats)), key=lambda k: -int(stats[k, cv2.CC_STAT_AREA])):
        x, y, w, h = (int(v) for v in stats[k, : cv2.CC_STAT_AREA])
        yield Patch(patch.top + y, patch.left + x, labels[y : y + h, x : x + w] == k)


def _by_component(objects: InstanceResult, largest: bool, min_area: int) -> InstanceResult:
    """Keep the largest part of each object, or make each part of at least `min_area` pixels an object."""
    rows: list[int] = []
    patches: list[Patch] = []
    for i, patch in enumerate(objects.patches):
        for part in _parts(patch):
            if np.count_nonzero(part.bits) >= min_area:
                rows.append(i)
                patches.append(part)
            if largest:
                break
    index = np.array(rows, dtype=np.int64)
    names = tuple(objects.names[i] for i in rows)
    return InstanceResult(MaskList(patches, objects.patches.size), objects.scores[index], objects.labels[index], names)
