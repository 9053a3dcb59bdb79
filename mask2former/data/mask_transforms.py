"""Apply image transforms to masks: polygons by their points, everything else by nearest neighbor.

detectron2 applies every transform to every mask in full image size. Flips, rotations by 90 degrees, nearest-neighbor
resizing, crops and padding only look up pixels, independently in rows and columns. A chain of them is therefore two
index vectors (`IndexMap`), computed once for an image, and each mask is transformed inside its bounding box. The result
is equal pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform
from PIL import Image

from ..structures.masks import EMPTY_PATCH, Patch, bitmap_to_patch, paste, tighten
from .polygon_masks import fill_polygons
from .transforms import PixelTransform, Rot90Transform


@dataclass(frozen=True)
class IndexMap:
    """A chain of lookups: result[i, j] = image[rows[i], columns[j]].

    rows int (H,), columns int (W,); -1 marks padding, the other entries are monotonic. If `transposed`, they index the
    transposed image.
    """

    rows: np.ndarray
    columns: np.ndarray
    transposed: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the result."""
        return len(self.rows), len(self.columns)

    def move(self, patch: Patch) -> Patch:
        """Transform one mask; the result lies inside the new image and may have empty borders, or be empty."""
        top, left, bits = patch
        if self.transposed:
            top, left, bits = left, top, bits.T
        rows = ((self.rows >= top) & (self.rows < top + bits.shape[0])).nonzero()[0]
        columns = ((self.columns >= left) & (self.columns < left + bits.shape[1])).nonzero()[0]
        if not rows.size or not columns.size:
            return EMPTY_PATCH
        # Rows first, which are copied as blocks; one lookup of both is three times slower.
        moved = bits.take(self.rows[rows] - top, axis=0).take(self.columns[columns] - left, axis=1)
        return Patch(int(rows[0]), int(columns[0]), moved)


def index_map(transforms: T.TransformList, size: tuple[int, int]) -> IndexMap | None:
    """Reduce a chain of transforms to lookups.

    Args:
        transforms: the transforms, as an AugmentationList returns them.
        size: height and width of the image before them.

    Returns:
        The map, or None if a transform is not a lookup of rows and columns (a rotation by 10 degrees).
    """
    result = IndexMap(np.arange(size[0]), np.arange(size[1]))
    for transform in flatten(transforms):
        composed = _compose(result, transform)
        if composed is None:
            return None
        result = composed
    return result


def padding_mask(transforms: T.TransformList, size: tuple[int, int], lookup: IndexMap | None = None) -> torch.Tensor:
    """Return bool (H, W), True on the pixels of the result that lie outside the image, whatever their value.

    Args:
        transforms: applied to the image.
        size: height and width before them.
        lookup: their `index_map`, if it is known.
    """
    lookup = lookup or index_map(transforms, size)
    if lookup is None:
        return torch.from_numpy(transforms.apply_segmentation(np.ones(size, np.uint8)) != 1)
    bits = np.zeros(lookup.size, dtype=bool)
    bits[lookup.rows < 0] = True
    bits[:, lookup.columns < 0] = True
    return torch.from_numpy(bits)


def patches_by_id(ids: np.ndarray, requested: Collection[int] | None = None) -> dict[int, Patch]:
    """Extract the masks of an id map.

    Args:
        ids: int (H, W).
        requested: only these; None for all.

    Returns:
        The mask of each id that is present, in ascending order of ids.
    """
    height, width = ids.shape
    if not ids.size:
        return {}
    # Runs of equal pixels in rows are fewer than the pixels.
    begins = np.ones((height, width), dtype=bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=begins[:, 1:])
    starts = begins.reshape(-1).nonzero()[0]
    rows, left = np.divmod(starts, width)
    right = np.append(left[1:], 0)
    right[right == 0] = width
    labels = ids.reshape(-1)[starts]
    order = labels.argsort(kind="stable")  # by label, then from top to bottom
    labels, rows = labels[order], rows[order]
    firsts = np.append(0, (labels[1:] != labels[:-1]).nonzero()[0] + 1)
    lasts = np.append(firsts[1:], len(labels)) - 1
    left = np.minimum.reduceat(left[order], firsts)
    right = np.maximum.reduceat(right[order], firsts)
    boxes = np.stack([labels[firsts], rows[firsts], rows[lasts] + 1, left, right], axis=1)
    return {
        label: Patch(top, left, ids[top:bottom, left:right] == label)
        for label, top, bottom, left, right in boxes.tolist()
        if requested is None or label in requested
    }


def move_patches(
    patches: Sequence[Patch], transforms: T.TransformList, size: tuple[int, int], lookup: IndexMap | None = None
) -> list[Patch]:
    """Apply transforms to masks, as `apply_segmentation` on each full mask would.

    Args:
        patches: masks in an image of `size`.
        transforms: applied to the image.
        size: height and width before them.
        lookup: their `index_map`, if it is known.
    """
    if not patches:
        return []
    lookup = lookup or index_map(transforms, size)
    if lookup is not None:
        return [tighten(lookup.move(patch)) for patch in patches]
    moved = []
    for patch in patches:
        mask = transforms.apply_segmentation(paste([patch], size)[0].astype(np.uint8))
        # Padding may have another value than 0 or 1; it belongs to no object.
        moved.append(bitmap_to_patch(mask == 1, mask.shape))
    return moved


def move_polygons(
    objects: Sequence[Sequence[np.ndarray]],
    transforms: T.TransformList,
    size: tuple[int, int],
    new_size: tuple[int, int],
    lookup: IndexMap | None = None,
) -> list[Patch]:
    """Apply transforms to the points of polygons, then rasterize, which is exact where nearest neighbor is not.

    Crops only shift the points, and the mask is clipped to the image. detectron2 clips the polygons first, with the
    optional package shapely; its masks differ by a few pixels where a crop crosses an outline.

    Args:
        objects: polygons of each object, float64 (P, 2), (x, y) in pixels.
        transforms: applied to the image.
        size: height and width before them.
        new_size: height and width after them.
        lookup: their `index_map`, if it is known.

    Returns:
        The mask of each object; empty if it was cropped away.
    """
    polygons = [polygon for object_polygons in objects for polygon in object_polygons]
    counts = [len(object_polygons) for object_polygons in objects]
    if polygons:
        polygons = _move_points(polygons, flatten(transforms))
    lookup = lookup or index_map(transforms, size)
    # An object outside a crop must not reappear on padding that follows the crop.
    window = (0, new_size[0], 0, new_size[1]) if lookup is None else (*_valid(lookup.rows), *_valid(lookup.columns))
    return fill_polygons(polygons, counts, new_size, window)


def _move_points(polygons: list[np.ndarray], transforms: list[T.Transform]) -> list[np.ndarray]:
    """Apply transforms to polygons; one call for the points of all of them, where that is possible."""
    ends = np.cumsum([len(polygon) for polygon in polygons])
    points = np.concatenate(polygons)
    for transform in transforms:
        if type(transform).apply_polygons in (T.Transform.apply_polygons, T.CropTransform.apply_polygons):
            points = transform.apply_coords(points)
        else:
            polygons = transform.apply_polygons([polygon.copy() for polygon in np.split(points, ends[:-1])])
            ends = np.cumsum([len(polygon) for polygon in polygons])
            points = np.concatenate(polygons)
    return [points[end - len(polygon) : end] for end, polygon in zip(ends.tolist(), polygons, strict=True)]


def _valid(indices: np.ndarray) -> tuple[int, int]:
    """Return the first position that is not padding, and the last one + 1."""
    valid = (indices >= 0).nonzero()[0]
    return (int(valid[0]), int(valid[-1]) + 1) if valid.size else (0, 0)


def flatten(transforms: T.TransformList) -> list[T.Transform]:
    """Return the transforms of a list and of the lists in it, in order."""
    flat: list[T.Transform] = []
    for transform in transforms.transforms:
        flat.extend(flatten(transform) if isinstance(transform, T.TransformList) else [transform])
    return flat


def _compose(before: IndexMap, transform: T.Transform) -> IndexMap | None:
    """Append one transform to a map; None if its type is not known, subclasses included."""
    rows, columns, transposed = before.rows, before.columns, before.transposed
    transform_type = type(transform)
    if transform_type in (T.NoOpTransform, T.BlendTransform) or isinstance(transform, PixelTransform):
        return before
    if transform_type is T.HFlipTransform:
        return IndexMap(rows, columns[::-1], transposed)
    if transform_type is T.VFlipTransform:
        return IndexMap(rows[::-1], columns, transposed)
    if transform_type is Rot90Transform:
        for _ in range(transform.turns % 4):
            rows, columns, transposed = columns[::-1], rows, not transposed
        return IndexMap(rows, columns, transposed)
    if transform_type is T.ResizeTransform:
        return IndexMap(_nearest(rows, transform.new_h), _nearest(columns, transform.new_w), transposed)
    if transform_type is T.CropTransform:
        rows = rows[transform.y0 : transform.y0 + transform.h]
        return IndexMap(rows, columns[transform.x0 : transform.x0 + transform.w], transposed)
    if transform_type is PadTransform:
        rows = _pad(rows, transform.y0, transform.y1)
        return IndexMap(rows, _pad(columns, transform.x0, transform.x1), transposed)
    return None


def _pad(indices: np.ndarray, before: int, after: int) -> np.ndarray:
    padded = np.full(before + len(indices) + after, -1)
    padded[before : before + len(indices)] = indices
    return padded


def _nearest(indices: np.ndarray, size: int) -> np.ndarray:
    """Resize an index vector with Pillow itself, so that ties round as they do for full masks."""
    line = Image.fromarray(indices.astype(np.int32)[None, :])
    return np.asarray(line.resize((size, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
