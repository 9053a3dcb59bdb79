"""Mask logits at the size of the results: complete, or only inside the boxes that positive logits can reach.

Bilinear interpolation is a weighted mean of four neighbors, so a resized logit is positive only next to a positive one.
The mask of a nucleus in an image of 24 megapixels therefore needs some thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.mask_reference import resize_masks, to_image
from ..structures.masks import EMPTY_PATCH, Patch, tighten
from .device_transfer import to_cpu

__all__ = ["Box", "ResizedMasks", "Size", "resize_masks"]

Size = tuple[int, int]
# Pixels that are interpolated together: small enough for a processor's cache, large enough for a GPU.
_BAND = {"cpu": 2**17, "cuda": 2**24}


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of the results; empty: all zero."""

    top: int
    bottom: int
    left: int
    right: int


class _Axis(NamedTuple):
    """Where the pixels of the results lie between those of the image, along one axis."""

    low: np.ndarray  # int64 (n,), the neighbors
    high: np.ndarray
    weight: np.ndarray  # float (n,), of the higher neighbor

    def reached(self, first: int, last: int) -> tuple[int, int]:
        """Return the range of results that have a neighbor in [first, last)."""
        return int(np.searchsorted(self.high, first)), int(np.searchsorted(self.low, last))


class ResizedMasks:
    """The masks of some queries of one image.

    Args:
        logits: float (N, H4, W4), before the sigmoid.
        padded, image, output: sizes (h, w) of the network's input, of the image in it, and of the results.
    """

    def __init__(self, logits: Tensor, padded: Size, image: Size, output: Size) -> None:
        self.size = output
        self._image_size = image
        self._at_image = to_image(logits, padded, image)

    @classmethod
    def given(cls, logits: Tensor) -> ResizedMasks:
        """Take logits (N, h, w) that have the size of the results."""
        masks = cls.__new__(cls)
        masks._at_image, masks.size = logits, (int(logits.shape[-2]), int(logits.shape[-1]))
        masks._image_size = masks.size
        return masks

    @cached_property
    def complete(self) -> Tensor:
        """Return all logits (N, h, w)."""
        if self.size == self._image_size:
            return self._at_image
        return F.interpolate(self._at_image[None], self.size, mode="bilinear", align_corners=False)[0]

    @cached_property
    def boxes(self) -> list[Box]:
        """Return for each mask the box outside of which no logit is positive; one copy to the CPU for all."""
        positive = self._at_image > 0
        hits = to_cpu(torch.cat((positive.any(2), positive.any(1)), 1)).numpy()  # (N, image height + image width)
        height = self._image_size[0]
        return [_reached(hit[:height], self._axes[0], hit[height:], self._axes[1]) for hit in hits]

    @cached_property
    def _axes(self) -> tuple[_Axis, _Axis]:
        double = self._at_image.dtype == torch.float64
        rows, columns = (_axis(n, m, double) for n, m in zip(self._image_size, self.size))
        return rows, columns

    def patch(self, index: int) -> tuple[Patch, float]:
        """Return one mask inside its bounding box, and the mean probability inside the mask (0 if it is empty)."""
        box = self.boxes[index]
        if box.bottom <= box.top or box.right <= box.left:
            return EMPTY_PATCH, 0.0
        area, total, bits = 0, 0.0, []
        for logits in self._bands(index, box):
            positive = logits > 0
            total += float((logits.sigmoid() * positive).sum())
            bits.append(to_cpu(positive).numpy())
            area += int(np.count_nonzero(bits[-1]))
        patch = tighten(Patch(box.top, box.left, bits[0] if len(bits) == 1 else np.concatenate(bits)))
        if patch.bits.base is not None:
            patch = patch._replace(bits=patch.bits.copy())  # a view would keep the larger array in memory
        return patch, total / (area + 1e-6)

    def _bands(self, index: int, box: Box) -> Iterator[Tensor]:
        """Yield the logits of a box, some rows at a time."""
        height = max(1, _BAND.get(self._at_image.device.type, 2**24) // (box.right - box.left))
        for top in range(box.top, box.bottom, height):
            yield self._logits(index, box._replace(top=top, bottom=min(top + height, box.bottom)))

    def _logits(self, index: int, box: Box) -> Tensor:
        if self.size == self._image_size or "complete" in self.__dict__:
            return self.complete[index, box.top : box.bottom, box.left : box.right]
        logits = self._at_image[index]
        rows, columns = self._axes
        low, high, weight = (part[box.top : box.bottom] for part in rows)
        first, last = int(low[0]), int(high[-1]) + 1
        source = _blend(logits[first:last].T, *(part[box.left : box.right] for part in columns)).T
        return _blend(source, low - first, high - first, weight)


def _blend(values: Tensor, low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> Tensor:
    """Interpolate between rows of `values` (n, m)."""
    device = values.device
    upper = torch.from_numpy(weight).to(device)[:, None]
    return values[torch.from_numpy(low).to(device)] * (1 - upper) + values[torch.from_numpy(high).to(device)] * upper


def _axis(source: int, target: int, double: bool) -> _Axis:
    """Place `target` pixels over `source` ones, as bilinear interpolation without aligned corners does."""
    kind = np.float64 if double else np.float32
    position = np.maximum((np.arange(target, dtype=kind) + kind(0.5)) * kind(source / target) - kind(0.5), kind(0))
    low = np.minimum(position.astype(np.int64), source - 1)
    return _Axis(low, np.minimum(low + 1, source - 1), (position - low).astype(kind))


def _reached(rows: np.ndarray, row_axis: _Axis, columns: np.ndarray, column_axis: _Axis) -> Box:
    """Return the box of the results next to the rows and columns of the image that are True."""
    if not rows.any() or not columns.any():
        return Box(0, 0, 0, 0)
    inside_rows, inside_columns = rows.nonzero()[0], columns.nonzero()[0]
    return Box(
        *row_axis.reached(inside_rows[0], inside_rows[-1] + 1),
        *column_axis.reached(inside_columns[0], inside_columns[-1] + 1),
    )
