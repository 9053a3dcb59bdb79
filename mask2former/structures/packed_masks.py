"""Masks with eight pixels in a byte, as they come from a GPU; unpacked where they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from .masks import EMPTY_PATCH, Patch


class PackedMasks(Sequence[Patch]):
    """N masks of one image, each stored in the bytes that its bounding box touches; a sequence of `Patch`.

    100 masks that cover an image of 24 megapixels are 300 MB here and 2.4 GB as patches.

    Args:
        rows: for each mask uint8 (bottom - top, bytes): the rows of its box, from byte left // 8 of the image's rows
            on. The first pixel is in the lowest bit.
        boxes: int64 (N, 4), left, top, right, bottom in pixels, the last two exclusive, tight; zeros where empty.
        areas: int64 (N,), pixels.
    """

    def __init__(self, rows: Sequence[np.ndarray], boxes: np.ndarray, areas: np.ndarray) -> None:
        if not len(rows) == len(boxes) == len(areas):
            raise ValueError(f"{len(rows)} masks, {len(boxes)} boxes and {len(areas)} areas")
        self._rows = tuple(rows)
        self.boxes = boxes
        self.areas = areas

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Patch]:
        return (self._patch(i) for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Patch: ...
    @overload
    def __getitem__(self, index: slice) -> PackedMasks: ...
    def __getitem__(self, index: int | slice) -> Patch | PackedMasks:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return self._patch(range(len(self))[index])

    def _patch(self, index: int) -> Patch:
        left, top, right, _ = self.boxes[index].tolist()
        if not self.areas[index]:
            return EMPTY_PATCH
        shift = left % 8
        bits = np.unpackbits(self._rows[index], axis=1, count=shift + right - left, bitorder="little")
        return Patch(top, left, bits.view(bool)[:, shift:])

    def select(self, index: np.ndarray) -> PackedMasks:
        """Return the masks at these indices (M,)."""
        return PackedMasks([self._rows[i] for i in index.tolist()], self.boxes[index], self.areas[index])
