"""Tables of the objects of a result: one row for each, with place, size and shape, and the intensity inside.

Centroids are those of scikit-image: pixel centers have whole numbers. Boxes are those of COCO: x and y are the left
and upper edge of the first pixel, which have whole numbers, too.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .result_objects import HasObjects
from .utils.csv_files import write_csv

Row = dict[str, Any]
Intensity = bool | np.ndarray

_PLACE = ("image", "id", "class", "score", "area", "centroid_x", "centroid_y")
_BOX = ("box_x", "box_y", "box_width", "box_height")
_LENGTHS = ("perimeter", "equivalent_diameter", "major_axis", "minor_axis")
_RATIOS = ("eccentricity", "solidity")
_STATISTICS = ("mean", "min", "max", "std", "sum")


def columns(*, channels: int | None = None, pixel_size: float | None = None) -> list[str]:
    """Return the names of the columns.

    Args:
        channels: None: without intensity; 0: of one intensity image; C: of C numbered channels.
        pixel_size: in micrometers; lengths and areas then carry their unit.
    """
    lengths, areas = list(_LENGTHS), []
    if pixel_size is not None:
        lengths, areas = [f"{name}_um" for name in _LENGTHS], ["area_um2"]
    groups = [] if channels is None else [""] if not channels else [f"_{c}" for c in range(channels)]
    intensity = [f"intensity_{name}{group}" for group in groups for name in _STATISTICS]
    return [*_PLACE, *_BOX, *areas, *lengths, *_RATIOS, *intensity]


def columns_of(intensity: Intensity = False, pixel_size: float | None = None) -> list[str]:
    """Return the names of the columns that `rows` has with these arguments."""
    if isinstance(intensity, np.ndarray):
        return columns(channels=_channels(intensity), pixel_size=pixel_size)
    return columns(channels=0 if intensity else None, pixel_size=pixel_size)


def rows(
    result: HasObjects,
    task: str = "auto",
    *,
    intensity: Intensity = False,
    pixel_size: float | None = None,
    image: str | None = None,
) -> list[Row]:
    """Return one row for each instance, panoptic segment or semantic class, in the order of `Result.to_coco`.

    Columns (lengths in pixels, areas in numbers of pixels):

    - `image`, `id` (pixel value in the label map; 1, 2, ... for instances), `class`, `score` (None for semantic maps);
    - `area`, `centroid_x`, `centroid_y`, `box_x`, `box_y`, `box_width`, `box_height`;
    - `perimeter` (estimate of Benkrid and Crookes, holes included), `equivalent_diameter` (of a disk of this area),
      `major_axis`, `minor_axis`, `eccentricity` (of the ellipse with the same second moments), all as in
      scikit-image; `solidity`: area divided by that of the convex hull of the pixels' corners;
    - `intensity_mean`, `_min`, `_max`, `_std`, `_sum`, if requested.

    The shape of an object without pixels is None.

    Args:
        result: the result to measure.
        task: "instance", "panoptic" or "semantic"; "auto": the first of these that the result has.
        intensity: True measures the image as it was given to the model, 8 bits, the mean of R, G and B. An array (H, W)
            or (H, W, C) is measured instead, for example the original with 16 bits; the statistics of C channels are
            `intensity_mean_0` and so on.
        pixel_size: width of a pixel in micrometers. Replaces the lengths by `perimeter_um`, ... and adds `area_um2`.
            Centroid and box stay in pixels, where the object is to be found.
        image: content of the column `image`; default: name of the image file.

    Raises:
        ValueError: an intensity image of another size, a pixel size that is not positive, or no such task.
    """
    if pixel_size is not None and not 0 < pixel_size < math.inf:
        raise ValueError(f"pixel_size must be a positive number of micrometers, not {pixel_size}")
    objects = result.objects(task)
    values = _intensity_image(result.image, intensity)
    if image is None:
        image = result.path.name if result.path else ""
    names = columns_of(intensity, pixel_size)
    scale = 1.0 if pixel_size is None else float(pixel_size)
    out = []
    for i, patch in enumerate(objects.masks):
        score, area = objects.scores[i], int(objects.masks.areas[i])
        x0, y0, x1, y1 = (int(v) for v in objects.masks.boxes[i])
        place: list[Any] = [image, int(objects.ids[i]), objects.names[i], None if score is None else float(score), area]
        if not area:
            out.append(dict.fromkeys(names) | dict(zip(_PLACE, place)) | dict.fromkeys(_BOX, 0))
            continue
        shape = measure_shape(patch.bits)
        lengths = [shape[name] * scale for name in _LENGTHS]
        entries = [*place, patch.left + shape["centroid_x"], patch.top + shape["centroid_y"]]
        entries += [x0, y0, x1 - x0, y1 - y0]
        entries += [] if pixel_size is None else [area * scale**2]
        entries += [*lengths, *(shape[name] for name in _RATIOS)]
        if values is not None:
            entries += _statistics(values[objects.masks.window(i)][patch.bits])
        out.append(dict(zip(names, entries, strict=True)))
    return out


# ------------------------------------------------------------------ measures
def measure_shape(bits: np.ndarray) -> dict[str, float]:
    """Measure a mask, bool (h, w) with at least one pixel inside; lengths in pixels, see `rows`."""
    bits = np.ascontiguousarray(bits)
    moments = cv2.moments(bits.view(np.uint8), binaryImage=True)
    area = moments["m00"]
    xx, xy, yy = (moments[key] / area for key in ("mu20", "mu11", "mu02"))
    half, difference = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    large, small = half + difference, max(half - difference, 0.0)
    return {
        "centroid_x": moments["m10"] / area,
        "centroid_y": moments["m01"] / area,
        "perimeter": _perimeter(bits),
        "equivalent_diameter": math.sqrt(4 * area / math.pi),
        "major_axis": 4 * math.sqrt(large),
        "minor_axis": 4 * math.sqrt(small),
        "eccentricity": math.sqrt(1 - small / large) if large else 0.0,
        "solidity": area / _hull_area(bits),
    }


def _perimeter(bits: np.ndarray) -> float:
    """Estimate the length of the border (Benkrid and Crookes, Design and FPGA implementation of a perimeter estimator).

    A border pixel has a 4-neighbor outside. It counts by how many of its direct and diagonal neighbors are border
    pixels: 1 on a straight piece, sqrt(2) on a diagonal one, their mean between the two.
    """
    inside = np.pad(bits, 1)
    core = inside[1:-1, 1:-1]
    border = core & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
    b = np.pad(border, 1).view(np.uint8)
    direct = b[:-2, 1:-1] + b[2:, 1:-1] + b[1:-1, :-2] + b[1:-1, 2:]
    diagonal = b[:-2, :-2] + b[:-2, 2:] + b[2:, :-2] + b[2:, 2:]
    kinds = np.bincount(5 * direct[border] + diagonal[border], minlength=25)
    return float(kinds @ _PERIMETER_WEIGHTS)


def _perimeter_weights() -> np.ndarray:
    """Return the length of a border pixel with this many (direct, diagonal) neighbors, at 5 direct + diagonal."""
    straight, slanted, mixed = 1.0, math.sqrt(2), (1 + math.sqrt(2)) / 2
    weights = np.zeros((5, 5))
    weights[2, :3] = weights[3, :3] = straight
    weights[0, 2] = weights[1, 3] = slanted
    weights[1, 1] = weights[1, 2] = mixed
    return weights.ravel()


_PERIMETER_WEIGHTS = _perimeter_weights()


def _hull_area(bits: np.ndarray) -> float:
    """Return the area of the convex hull of the corners of all pixels inside."""
    y = np.flatnonzero(bits.any(axis=1))
    first, last = bits[y].argmax(axis=1), bits.shape[1] - bits[y, ::-1].argmax(axis=1)
    x = np.concatenate([first, first, last, last])
    points = np.stack([x, np.concatenate([y, y + 1, y, y + 1])], axis=1).astype(np.int32)
    return float(cv2.contourArea(cv2.convexHull(points)))


def _intensity_image(image: np.ndarray, intensity: Intensity) -> np.ndarray | None:
    if isinstance(intensity, np.ndarray):
        if intensity.shape[:2] != image.shape[:2] or intensity.ndim not in (2, 3) or intensity.dtype.kind not in "buif":
            raise ValueError(
                f"the intensity image is {intensity.dtype} {intensity.shape}, but must be numbers of shape (H, W) or "
                f"(H, W, C) with H, W = {image.shape[:2]}"
            )
        return intensity
    if not intensity:
        return None
    gray = image[:, :, 0]
    if (gray == image[:, :, 1]).all() and (gray == image[:, :, 2]).all():
        return gray
    return image.mean(axis=2, dtype=np.float32)


def _channels(values: np.ndarray | None) -> int | None:
    return None if values is None else 0 if values.ndim == 2 else values.shape[2]


def _statistics(values: np.ndarray) -> list[Any]:
    """Return mean, min, max, standard deviation and sum of values (P,) or, channel by channel, (P, C)."""
    out: list[Any] = []
    for channel in values[None] if values.ndim == 1 else values.T:
        wide = channel.astype(np.float64)
        total = wide.sum() if channel.dtype.kind == "f" else channel.sum(dtype=np.int64)
        out += [float(wide.mean()), channel.min().item(), channel.max().item(), float(wide.std()), total.item()]
    return out


# ------------------------------------------------------------------ output
def dataframe(table: Sequence[Row], names: Sequence[str]) -> Any:
    """Build a pandas DataFrame; ImportError with the command that installs pandas."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError('to_dataframe needs pandas: run pip install "pandas>=2.0"') from error
    return pandas.DataFrame(list(table), columns=list(names))


def write_table(path: str | os.PathLike[str], table: Iterable[Row], names: Sequence[str] | None = None) -> Path:
    """Write rows, of one or many results, as CSV; return the path. See `utils.csv_files.write_csv` for the cells.

    Numbers with a fraction have 8 digits. What is missing or NaN is an empty cell.

    Args:
        path: the file to write; its directory is made.
        table: rows as `rows` returns them; a generator is not held in memory.
        names: the columns; None: those of the first row, or all without intensity if there are no rows.

    Raises:
        ValueError: a row has other columns.
    """
    remaining = iter(table)
    first = next(remaining, None)
    header = list(names if names is not None else columns() if first is None else first)

    def cells() -> Iterator[list[Any]]:
        for number, row in enumerate([] if first is None else itertools.chain([first], remaining), 1):
            if list(row) != header:
                other = sorted(set(row) ^ set(header)) or ["in another order"]
                raise ValueError(f"{path}: row {number} has other columns than the table: {', '.join(other)}")
            yield [float(f"{value:.8g}") if isinstance(value, float) else value for value in row.values()]

    return write_csv(path, header, cells())
