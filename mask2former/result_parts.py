"""The parts of a result: instances, and a panoptic map with its segments; and their making from a model's tensors.

Arrays are NumPy arrays at the size of the image. N objects, H W of the image. Boxes are XYXY in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .structures.classes import ClassTable
from .structures.mask_list import MaskList
from .structures.masks import Patch


@dataclass(frozen=True)
class InstanceResult:
    """N objects, best first as the model returns them."""

    patches: MaskList  # N masks, each stored inside its bounding box
    scores: np.ndarray  # (N,) float32
    labels: np.ndarray  # (N,) int64, class indices
    names: tuple[str, ...]  # class name of each object

    @classmethod
    def from_masks(
        cls, masks: np.ndarray, scores: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> InstanceResult:
        """Build the result of masks bool (N, H, W)."""
        return cls(MaskList.from_dense(masks), scores, labels, tuple(names))

    @cached_property
    def masks(self) -> np.ndarray:
        """Return the masks as one array bool (N, H, W), kept from the first use on.

        Raises:
            MemoryError: they would take more than 16 GiB; `patches` has them in little memory.
        """
        return self.patches.dense()

    @property
    def boxes(self) -> np.ndarray:
        """Return boxes float32 (N, 4), XYXY, right and bottom exclusive; zeros where a mask is empty."""
        return self.patches.boxes

    @property
    def areas(self) -> np.ndarray:
        """Return int64 (N,), pixels."""
        return self.patches.areas

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: np.ndarray) -> InstanceResult:
        """Return the objects at these indices ((M,) integers) or where True ((N,) bool)."""
        index = np.flatnonzero(index) if index.dtype == bool else index
        names = tuple(self.names[i] for i in index)
        return InstanceResult(self.patches.select(index), self.scores[index], self.labels[index], names)

    def without_overlap(self, max_overlap: float = 0.5) -> InstanceResult:
        """Assign every pixel to its highest-scored object and remove objects that lose more than `max_overlap`.

        `max_overlap` is a fraction of the object's area. The removed ones are near-duplicates: the same object
        predicted twice, or once more with another class.
        """
        taken = np.zeros(self.patches.size, dtype=bool)
        kept: dict[int, Patch] = {}
        for i in np.argsort(-self.scores, kind="stable").tolist():
            window, bits = self.patches.window(i), self.patches[i].bits
            free = bits & ~taken[window]
            area, left = int(self.areas[i]), np.count_nonzero(free)
            if left and area - left <= max_overlap * area:
                taken[window] |= free
                kept[i] = Patch(self.patches[i].top, self.patches[i].left, free)
        index = np.array(sorted(kept), dtype=np.int64)
        patches = MaskList((kept[i] for i in index), self.patches.size)
        names = tuple(self.names[i] for i in index)
        return InstanceResult(patches, self.scores[index], self.labels[index], names)

    def label_map(self) -> np.ndarray:
        """Return (H, W): 0 background, i + 1 for object i; the highest score wins where objects overlap.

        uint16, or uint32 for more than 65,535 objects.
        """
        out = np.zeros(self.patches.size, dtype=np.uint16 if len(self) <= 65_535 else np.uint32)
        for i in np.argsort(-self.scores, kind="stable")[::-1].tolist():
            out[self.patches.window(i)][self.patches[i].bits] = i + 1
        return out


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map."""

    id: int  # value in the map
    label: int  # class index
    name: str
    is_thing: bool
    area: int  # pixels
    score: float | None = None


@dataclass(frozen=True)
class PanopticResult:
    """`map` (H, W) int32: 0 where there is no segment, otherwise the id of one of the segments."""

    map: np.ndarray
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return len(self.segments)

    def select(self, keep: Iterable[Segment]) -> PanopticResult:
        """Return only these segments; the pixels of the others become 0."""
        keep = tuple(keep)
        mask = np.isin(self.map, [s.id for s in keep])
        return PanopticResult(np.where(mask, self.map, 0).astype(np.int32), keep)


# ------------------------------------------------------------------ from the model's tensors
def instances_from_output(predicted: Any, classes: ClassTable, score_threshold: float) -> InstanceResult:
    """Convert detectron2 `Instances`, best first; lower scores are left out.

    They have `scores`, `pred_classes`, and `pred_patches` (list of `Patch`) or `pred_masks` (N, H, W).
    """
    order = predicted.scores.argsort(descending=True, stable=True)
    order = order[predicted.scores[order] >= score_threshold]
    labels = predicted.pred_classes[order].cpu().numpy().astype(np.int64)
    scores = predicted.scores[order].float().cpu().numpy()
    names = tuple(classes.names[k] for k in labels)
    if predicted.has("pred_patches"):
        patches = MaskList(predicted.pred_patches, predicted.image_size).select(order.numpy())
        return InstanceResult(patches, scores, labels, names)
    return InstanceResult.from_masks(predicted.pred_masks[order].to(torch.bool).cpu().numpy(), scores, labels, names)


def panoptic_from_output(
    id_map: torch.Tensor, info: Sequence[Mapping[str, Any]], classes: ClassTable
) -> PanopticResult:
    """Convert detectron2's panoptic output: ids (H, W) and a dictionary for each segment.

    Areas are counted where the model does not say them ("area").
    """
    ids = id_map.to(torch.int32).cpu().numpy()
    areas = {int(item["id"]): item["area"] for item in info if "area" in item}
    if len(areas) < len(info):
        areas = dict(zip(*(v.tolist() for v in np.unique(ids, return_counts=True)), strict=True))
    segments = []
    for item in info:
        label, score = int(item["category_id"]), item.get("score")
        segments.append(
            Segment(
                id=int(item["id"]),
                label=label,
                name=classes.names[label],
                is_thing=bool(item.get("isthing", classes.is_thing[label])),
                area=int(areas.get(int(item["id"]), 0)),
                score=None if score is None else float(score),
            )
        )
    return PanopticResult(ids, tuple(segments))
