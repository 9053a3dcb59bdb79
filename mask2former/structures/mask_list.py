"""The masks of the objects of one image, each stored inside its bounding box.

4,000 nuclei in an image of 3000 x 3000 pixels are 38 GB as dense masks, and some MB as patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from .masks import EMPTY_PATCH, Patch, bitmap_to_patch, boxes_from_patches, paste, rle_to_patch, tighten
from .packed_masks import PackedMasks
from .rle import Rle, encode_patches


class MaskList:
    """N masks of an image of `size` (height, width), in order; not changed after it was made.

    Iterate or index for `Patch` objects (top, left, bits); `dense` gives bool arrays of the image's size.
    """

    def __init__(self, patches: Iterable[Patch], size: tuple[int, int]) -> None:
        """Hold patches that lie inside the image; empty borders are cropped.

        Args:
            patches: pixel (0, 0) of `bits`, bool (h, w), is (top, left) of the image. `PackedMasks` are unpacked when
                the first of them is looked at.
            size: height and width of the image in pixels.
        """
        self.size: tuple[int, int] = (int(size[0]), int(size[1]))
        if isinstance(patches, PackedMasks):
            self._hold(patches, patches.boxes.astype(np.float32), patches.areas)
            return
        tight = tuple(tighten(patch) for patch in patches)
        areas = [np.count_nonzero(patch.bits) for patch in tight]
        self._hold(tight, boxes_from_patches(tight).numpy(), np.array(areas, dtype=np.int64))

    def _hold(self, masks: PackedMasks | tuple[Patch, ...], boxes: np.ndarray, areas: np.ndarray) -> None:
        self._masks: PackedMasks | tuple[Patch, ...] = masks
        self.boxes: np.ndarray = boxes  # (N, 4) float32 XYXY, zeros where empty
        self.areas: np.ndarray = areas  # (N,) pixels

    @property
    def patches(self) -> tuple[Patch, ...]:
        """Return all masks; those that were packed are unpacked at the first use."""
        masks = self._masks
        if isinstance(masks, PackedMasks):
            masks = self._masks = tuple(masks)
        return masks

    @classmethod
    def from_dense(cls, masks: Sequence[np.ndarray] | np.ndarray, size: tuple[int, int] | None = None) -> MaskList:
        """Crop masks (N, H, W), bool or integers that are nonzero inside; `size` is needed for N = 0 in a list."""
        height, width = size if size is not None else np.shape(masks)[1:]
        # Copies: a patch that is a view would keep all masks in memory.
        patches = (bitmap_to_patch(mask, (height, width)) for mask in masks)
        return cls((patch._replace(bits=patch.bits.copy()) for patch in patches), (height, width))

    @classmethod
    def from_rles(cls, rles: Iterable[Rle], size: tuple[int, int]) -> MaskList:
        """Decode COCO run lengths; SegmentationError for malformed ones."""
        return cls((rle_to_patch(rle, size) for rle in rles), size)

    @classmethod
    def from_label_map(cls, label_map: np.ndarray, labels: Sequence[int] | np.ndarray) -> MaskList:
        """Take the region of each of these labels from a label map (H, W) of integers."""
        keys, inverse = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
        patches = [EMPTY_PATCH] * len(keys)
        if len(keys):
            position = np.searchsorted(keys, label_map).clip(max=len(keys) - 1)
            dense = np.where(keys[position] == label_map, position + 1, 0)
            for i, window in enumerate(ndimage.find_objects(dense, max_label=len(keys))):
                if window is not None:
                    patches[i] = Patch(window[0].start, window[1].start, dense[window] == i + 1)
        return cls((patches[i] for i in inverse), (label_map.shape[0], label_map.shape[1]))

    def __len__(self) -> int:
        return len(self._masks)

    def __iter__(self) -> Iterator[Patch]:
        return iter(self.patches)

    def __getitem__(self, index: int) -> Patch:
        return self.patches[index]

    def select(self, index: np.ndarray) -> MaskList:
        """Return the masks at these indices ((M,) integers) or where True ((N,) bool)."""
        index = np.flatnonzero(index) if index.dtype == bool else index
        masks, result = self._masks, MaskList((), self.size)
        selected = masks.select(index) if isinstance(masks, PackedMasks) else tuple(masks[i] for i in index)
        result._hold(selected, self.boxes[index], self.areas[index])
        return result

    def dense(self) -> np.ndarray:
        """Return bool (N, H, W).

        Raises:
            MemoryError: the masks would take more than 16 GiB.
        """
        needed = len(self) * self.size[0] * self.size[1]
        if needed > 1 << 34:
            raise MemoryError(
                f"{len(self)} masks of {self.size[1]}x{self.size[0]} pixels take {needed / 2**30:.0f} GiB as one "
                "array; use the patches (result.instances.patches), the label map or the RLEs instead"
            )
        return paste(self.patches, self.size)

    def encode(self) -> list[Rle]:
        """Return COCO run lengths, `{"size": [h, w], "counts": str}` of each mask."""
        return encode_patches(self.patches, self.size)

    def window(self, index: int) -> tuple[slice, slice]:
        """Return rows and columns of the image that the mask's bounding box covers."""
        patch = self.patches[index]
        height, width = patch.bits.shape
        return slice(patch.top, patch.top + height), slice(patch.left, patch.left + width)

    def __repr__(self) -> str:
        return f"MaskList({len(self)} masks of {self.size[1]}x{self.size[0]} pixels)"


def intersection_area(a: Patch, b: Patch) -> int:
    """Count the pixels that two masks of one image share."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.bits.shape[0], b.top + b.bits.shape[0])
    right = min(a.left + a.bits.shape[1], b.left + b.bits.shape[1])
    if bottom <= top or right <= left:
        return 0
    first = a.bits[top - a.top : bottom - a.top, left - a.left : right - a.left]
    second = b.bits[top - b.top : bottom - b.top, left - b.left : right - b.left]
    return int(np.count_nonzero(first & second))
