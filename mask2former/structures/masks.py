"""Conversion of polygons, run-length encodings (RLE) and bitmaps to boolean masks.

All conversions return a `Patch`: the mask inside its bounding box. Objects are small compared to images (375 nuclei in
one image), so patches are cheap to create, move and paint, and a dense mask is written only once. RLEs are COCO's:
alternating runs of 0 and 1, column by column, starting with 0; the compressed form is that of the COCO API (5 bits a
character, from the 4th run on the difference to the run before the last). They are decoded here and not by
pycocotools, whose C code trusts its input and reads or writes out of bounds on malformed RLEs.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_mask
import torch

# A polygon may leave the image (amodal annotations), but coordinates this many image sizes away are an
# error, and rasterizing them takes time and memory in proportion to their length.
_FAR = 10
_LONGEST = 4_000_000  # pixels of an outline: pycocotools takes about 100 bytes for each

_PLAIN_NUMBERS = {int, float}


class Patch(NamedTuple):
    """A mask inside its bounding box: pixel (0, 0) of `bits`, bool (h, w), is (top, left) of the image."""

    top: int
    left: int
    bits: np.ndarray


EMPTY_PATCH = Patch(0, 0, np.zeros((0, 0), dtype=bool))


class SegmentationError(ValueError):
    """A segmentation is malformed; callers that know file and annotation raise a BadRecordError from it."""


def read_polygons(segmentation: list[Any], size: tuple[int, int]) -> list[list[float]]:
    """Check the polygons of an annotation file and return them in one form.

    Args:
        segmentation: polygons, each a flat list x0, y0, x1, y1, ... or a list of points [x, y]; or one polygon, a list
            of at least three points. In pixels.
        size: height and width of the image.

    Returns:
        Flat lists, without the degenerate ones of less than three points, which some annotation tools write. Flat
        lists are not copied.

    Raises:
        SegmentationError: naming the polygon and what is wrong.
    """
    is_one = len(segmentation) > 2 and all(_is_point(entry) for entry in segmentation)
    limit = _FAR * max(size)
    kept = []
    for position, polygon in enumerate([segmentation] if is_one else segmentation):
        if not _is_plain(polygon, limit):
            polygon = _flat(polygon, position)
            if len(polygon) in (0, 2, 4):
                continue
            _check_points(polygon, position, size, limit)
        kept.append(polygon)
    return kept


def _is_plain(polygon: Any, limit: int) -> bool:
    """Return whether a polygon is a flat list without faults; what it refuses may still be good. Faster than NumPy."""
    return (
        type(polygon) is list
        and len(polygon) >= 6
        and not len(polygon) % 2
        and len(polygon) * limit <= _LONGEST
        and set(map(type, polygon)) <= _PLAIN_NUMBERS
        and -limit <= min(polygon)
        and max(polygon) <= limit
        and not math.isnan(sum(polygon))
    )


def check_polygons(polygons: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Check the polygons of one object.

    Args:
        polygons: list of flat lists x0, y0, x1, y1, ..., lists of points [x, y], or arrays (P, 2), in pixels.
        size: height and width of the image.

    Returns:
        One new float64 array (P, 2) for each polygon, P >= 3.

    Raises:
        SegmentationError: naming the polygon and what is wrong.
    """
    if not isinstance(polygons, (list, tuple)) or not polygons:
        raise SegmentationError("the segmentation has no polygons")
    limit = _FAR * max(size)
    flat = (_flat(polygon, position) for position, polygon in enumerate(polygons))
    return [_check_points(polygon, position, size, limit) for position, polygon in enumerate(flat)]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_point(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and _is_number(value[0]) and _is_number(value[1])


def _flat(polygon: Any, position: int) -> Any:
    """Return a polygon as a flat list or array of numbers; text, null, true and false are not numbers."""
    if isinstance(polygon, np.ndarray):
        if polygon.dtype.kind in "iuf" and (polygon.ndim == 1 or (polygon.ndim == 2 and polygon.shape[1] == 2)):
            return polygon.reshape(-1)
    elif isinstance(polygon, (list, tuple)):
        if set(map(type, polygon)) <= _PLAIN_NUMBERS or all(map(_is_number, polygon)):
            return polygon
        if all(map(_is_point, polygon)):
            return [value for point in polygon for value in point]
    elif _is_number(polygon):
        return [polygon]
    raise SegmentationError(
        f"polygon {position} is not a list of numbers x0, y0, x1, y1, ... nor a list of points [x, y]"
    )


def _check_points(polygon: Any, position: int, size: tuple[int, int], limit: int) -> np.ndarray:
    """Return a flat polygon as a new array (P, 2)."""
    try:
        points = np.array(polygon, dtype=np.float64)
    except OverflowError as error:
        raise SegmentationError(f"polygon {position} lies far outside the image") from error
    if points.size < 6 or points.size % 2:
        raise SegmentationError(f"polygon {position} has {points.size} numbers, but needs an even number of 6 or more")
    extent = float(np.abs(points).max())
    if not math.isfinite(extent):
        raise SegmentationError(f"polygon {position} contains NaN or infinity")
    if extent > limit:
        raise SegmentationError(f"polygon {position} lies far outside the image of {size[1]}x{size[0]} pixels")
    points = points.reshape(-1, 2)
    if extent * len(points) > _LONGEST and np.abs(np.diff(points, axis=0)).max(axis=1).sum() > _LONGEST:
        raise SegmentationError(f"the outline of polygon {position} is longer than {_LONGEST} pixels")
    return points


def polygons_to_patches(objects: Sequence[Sequence[np.ndarray]], size: tuple[int, int]) -> list[Patch]:
    """Rasterize polygons as pycocotools does; the polygons of one object are merged.

    Args:
        objects: for each object its polygons, float (P, 2) with P >= 3, checked; an object without polygons gives an
            empty patch.
        size: height and width of the canvas; polygons are clipped to it.
    """
    return [_rasterize([polygon for polygon in polygons if _touches(polygon, size)], size) for polygons in objects]


def _touches(polygon: np.ndarray, size: tuple[int, int]) -> bool:
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return bool(high[0] > 0 and high[1] > 0 and low[0] < size[1] and low[1] < size[0])


def _rasterize(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> Patch:
    if not polygons:
        return EMPTY_PATCH
    # pycocotools rounds negative coordinates in the other direction; padding by full pixels on the left and the top
    # keeps them positive, so that a crop is exactly that part of the complete mask.
    low = np.min([polygon.min(axis=0) for polygon in polygons], axis=0)
    left, top = (max(0, math.ceil(-value)) for value in low)
    height, width = size[0] + top, size[1] + left
    codes = coco_mask.frPyObjects([(polygon + (left, top)).reshape(-1) for polygon in polygons], height, width)
    code = codes[0] if len(codes) == 1 else coco_mask.merge(codes)
    patch = _paint(decode_counts(code["counts"]), height)
    if not left and not top:
        return patch
    return clip_patch(Patch(patch.top - top, patch.left - left, patch.bits), 0, size[0], 0, size[1])


def decode_counts(counts: bytes | str) -> np.ndarray:
    """Decode the compressed runs of a COCO RLE.

    Returns:
        int64 (R,), the lengths of the runs; not yet checked for sign and sum.

    Raises:
        SegmentationError: invalid characters, or truncated counts.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except UnicodeEncodeError as error:
        raise SegmentationError("RLE counts contain invalid characters") from error
    if not raw:
        return np.zeros(0, dtype=np.int64)
    symbols = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if symbols.min() < 0 or symbols.max() > 63:
        raise SegmentationError("RLE counts contain invalid characters")
    last = (symbols & 32) == 0
    if not last[-1]:
        raise SegmentationError("RLE counts are truncated")
    ends = last.nonzero()[0]
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any image has pixels
        raise SegmentationError("RLE counts contain a run longer than any image")
    shifts = 5 * (np.arange(len(symbols)) - starts.repeat(lengths))
    values = np.add.reduceat((symbols & 31) << shifts, starts)
    negative = (symbols[ends] & 16) != 0
    values[negative] -= 1 << (5 * lengths[negative])
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def rle_to_patch(rle: dict[str, Any], size: tuple[int, int]) -> Patch:
    """Decode a COCO RLE; see `rle_runs`."""
    return _paint(rle_runs(rle, size), size[0])


def rle_runs(rle: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the checked runs of a COCO RLE, compressed (str or bytes) or not (list of run lengths).

    Args:
        rle: {"size": [height, width], "counts": ...}.
        size: height and width of the image, which must be those of the RLE.

    Returns:
        int64 (R,), lengths of the alternating runs of 0 and 1, column by column.

    Raises:
        SegmentationError: wrong size, malformed counts, or runs that do not add up to the image.
    """
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise SegmentationError("an RLE needs the keys 'size' and 'counts'")
    shape = rle["size"]
    # As integers, which pycocotools needs: 64.0 equals 64.
    if not isinstance(shape, (list, tuple)) or [*shape] != [*size] or float in map(type, shape):
        raise SegmentationError(f"the RLE is for size {shape}, the image has [height, width] = {list(size)}")
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        runs = decode_counts(counts)
    else:
        runs = _uncompressed_runs(counts)
    height, width = size
    if runs.size and runs.min() < 0:
        raise SegmentationError("the RLE has a run of negative length")
    # A run longer than the image could make the sum overflow, so look at the largest first.
    if not runs.size or runs.max() > height * width or runs.sum() != height * width:
        raise SegmentationError(f"the runs of the RLE do not add up to {height} x {width} pixels")
    return runs


def bitmap_to_patch(bitmap: Any, size: tuple[int, int]) -> Patch:
    """Crop a bitmap (H, W), bool or integer array or tensor, nonzero inside, to its bounding box.

    Raises:
        SegmentationError: wrong shape or dtype.
    """
    array = bitmap.numpy(force=True) if isinstance(bitmap, torch.Tensor) else np.asarray(bitmap)
    if array.shape != tuple(size):
        raise SegmentationError(f"the bitmap has shape {array.shape}, the image (height, width) = {tuple(size)}")
    if array.dtype.kind not in "bui":
        raise SegmentationError(f"the bitmap has dtype {array.dtype}, but must be bool or integer")
    bits = array if array.dtype == bool else array != 0
    columns = bits.any(axis=0).nonzero()[0]
    if not columns.size:
        return EMPTY_PATCH
    left, right = int(columns[0]), int(columns[-1]) + 1
    rows = bits[:, left:right].any(axis=1).nonzero()[0]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return Patch(top, left, bits[top:bottom, left:right])


def segmentation_to_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Convert the segmentation of one annotation, in any of the three formats, to a mask.

    Args:
        segmentation: list of polygons, RLE dictionary, or bitmap.
        size: height and width of the image.

    Returns:
        bool (H, W).

    Raises:
        SegmentationError: the segmentation is malformed.
    """
    return paste([segmentation_to_patch(segmentation, size)], size)[0]


def segmentation_to_patch(segmentation: Any, size: tuple[int, int]) -> Patch:
    """Convert polygons, an RLE or a bitmap to a patch; see `segmentation_to_mask`."""
    if isinstance(segmentation, (list, tuple)):
        return polygons_to_patches([check_polygons(segmentation, size)], size)[0]
    return source_patch(segmentation, size)


def source_patch(segmentation: Any, size: tuple[int, int]) -> Patch:
    """Convert an RLE or a bitmap to a patch; see `rle_to_patch` and `bitmap_to_patch`."""
    if isinstance(segmentation, dict):
        return rle_to_patch(segmentation, size)
    if isinstance(segmentation, (np.ndarray, torch.Tensor)):
        return bitmap_to_patch(segmentation, size)
    actual = "missing" if segmentation is None else f"a {type(segmentation).__name__}"
    raise SegmentationError(f"the segmentation is {actual}, but must be polygons, an RLE or a bitmap")


def paste(patches: Sequence[Patch], size: tuple[int, int], masks: np.ndarray | None = None) -> np.ndarray:
    """Paste patches that lie inside the canvas into dense masks.

    Args:
        patches: N masks.
        size: height H and width W of the canvas.
        masks: False (N, H, W), where they are pasted; None for a new array.

    Returns:
        bool (N, H, W). Memory that is not written is not allocated, so many small objects are cheap.
    """
    if masks is None:
        masks = np.zeros((len(patches), *size), dtype=bool)
    for mask, patch in zip(masks, patches, strict=True):
        height, width = patch.bits.shape
        mask[patch.top : patch.top + height, patch.left : patch.left + width] = patch.bits
    return masks


def clip_patch(patch: Patch, top: int, bottom: int, left: int, right: int) -> Patch:
    """Return the part of a mask inside rows [top, bottom) and columns [left, right), in its bounding box."""
    height, width = patch.bits.shape
    if patch.top >= top and patch.left >= left and patch.top + height <= bottom and patch.left + width <= right:
        return patch
    rows = slice(max(0, top - patch.top), max(0, bottom - patch.top))
    columns = slice(max(0, left - patch.left), max(0, right - patch.left))
    return tighten(Patch(max(patch.top, top), max(patch.left, left), patch.bits[rows, columns]))


def tighten(patch: Patch) -> Patch:
    """Crop empty borders."""
    inner = bitmap_to_patch(patch.bits, patch.bits.shape)
    if not inner.bits.size:
        return EMPTY_PATCH
    return Patch(patch.top + inner.top, patch.left + inner.left, inner.bits)


def boxes_from_patches(patches: Sequence[Patch]) -> torch.Tensor:
    """Return bounding boxes float32 (N, 4), XYXY in pixels, right and bottom exclusive; zeros where empty."""
    boxes = [(p.left, p.top, p.left + p.bits.shape[1], p.top + p.bits.shape[0]) for p in patches]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def boxes_from_masks(masks: torch.Tensor) -> torch.Tensor:
    """Compute the bounding boxes of masks, without a loop and without a copy between devices.

    Args:
        masks: bool (N, H, W).

    Returns:
        float32 (N, 4), XYXY in absolute pixels, right and bottom exclusive; zeros where a mask is empty.
    """
    count, height, width = masks.shape
    columns, rows = masks.any(dim=1), masks.any(dim=2)
    x = torch.arange(width, device=masks.device)
    y = torch.arange(height, device=masks.device)

    def edges(hit: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = torch.where(hit, positions, len(positions)).amin(dim=1)
        high = torch.where(hit, positions + 1, 0).amax(dim=1)
        return low, high

    if not count or not height or not width:
        return torch.zeros(count, 4, device=masks.device)
    (left, right), (top, bottom) = edges(columns, x), edges(rows, y)
    boxes = torch.stack([left, top, right, bottom], dim=1).float()
    return boxes * columns.any(dim=1, keepdim=True)


def _uncompressed_runs(counts: Any) -> np.ndarray:
    if not isinstance(counts, (list, tuple)) or not all(type(run) is int for run in counts):
        raise SegmentationError("RLE counts are neither a string nor a list of integers")
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError as error:
        raise SegmentationError("RLE counts contain a run longer than any image") from error


def _paint(runs: np.ndarray, height: int) -> Patch:
    """Decode checked runs of an RLE inside their bounding box."""
    edges = runs.cumsum()
    starts, stops = edges[0::2], edges[1::2]
    starts = starts[: len(stops)]
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    if not starts.size:
        return EMPTY_PATCH
    left, right = int(starts[0]) // height, (int(stops[-1]) - 1) // height + 1
    borders = np.empty(2 * len(starts) + 2, dtype=np.int64)
    borders[0], borders[-1] = left * height, right * height
    borders[1:-1:2], borders[2:-1:2] = starts, stops
    values = np.zeros(len(borders) - 1, dtype=bool)
    values[1::2] = True
    slab = values.repeat(borders[1:] - borders[:-1]).reshape(right - left, height)
    rows = slab.any(axis=0).nonzero()[0]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return Patch(top, left, slab[:, top:bottom].T)
