"""The objects of a result, whatever the task: what tables, polygons and label maps are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from .structures.classes import ClassTable
from .structures.mask_list import MaskList


@dataclass(frozen=True)
class ObjectList:
    """N instances, panoptic segments or classes of a semantic map, in the order of `Result.to_coco`."""

    masks: MaskList
    ids: np.ndarray  # (N,) int64, at least 1: the pixel values of the label map
    labels: np.ndarray  # (N,) int64, class indices
    names: tuple[str, ...]  # class name of each object
    scores: tuple[float | None, ...]  # None: the model gives none (semantic maps)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the image."""
        return self.masks.size

    def label_map(self) -> np.ndarray:
        """Return (H, W): 0 background, else the id of an object, of the best one where objects overlap.

        uint16, or uint32 if an id is above 65,535.
        """
        largest = int(self.ids.max(initial=0))
        out = np.zeros(self.size, dtype=np.uint16 if largest < 1 << 16 else np.uint32)
        scores = np.array([1.0 if score is None else score for score in self.scores])
        for i in np.argsort(-scores, kind="stable")[::-1]:
            out[self.masks.window(i)][self.masks[i].bits] = self.ids[i]
        return out


class HasObjects(Protocol):
    """A `Result`, or what looks like one."""

    @property
    def image(self) -> np.ndarray:
        """Return the image, (H, W, 3) uint8 RGB."""

    @property
    def classes(self) -> ClassTable:
        """Return the classes of the model."""

    @property
    def path(self) -> Path | None:
        """Return the file that the image came from."""

    def objects(self, task: str = "auto") -> ObjectList:
        """Return the objects of a task."""


def objects_of_map(
    label_map: np.ndarray,
    values: Sequence[int],
    *,
    ids: Sequence[int],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float | None],
) -> ObjectList:
    """Build the list of the regions with these `values` in a map (H, W); other arguments have one entry for each."""
    return ObjectList(
        MaskList.from_label_map(label_map, values),
        np.array(ids, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        tuple(names),
        tuple(scores),
    )
