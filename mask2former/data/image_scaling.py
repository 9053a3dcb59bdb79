"""Scale pixel values of any type to 8 bits, and notice images that would become nearly black."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from ..errors import BadRecordError

logger = logging.getLogger(__name__)

Stretch = str | tuple[float, float] | None

STRETCHES = ("percentile", "minmax")
PERCENTILES = (1.0, 99.8)

_SAMPLED = 4_000_000  # percentiles of larger images are those of every n-th pixel
_BLOCK = 1_000_000  # values that are converted at a time, so that no copy of a large image in float64 is made
_DARK = 1 / 8  # an image that stays below this part of the range was probably recorded with fewer bits
_REMEDY = 'pass stretch="percentile" or stretch=(low, high), or save the image with 8 or 16 bits per channel'

_warned: set[tuple[str, str]] = set()


def check_stretch(stretch: Any) -> Stretch:
    """Return the argument `stretch` in its normal form.

    Raises:
        ValueError: it is not None, "percentile", "minmax" or two finite numbers, low < high.
    """
    if stretch is None or (isinstance(stretch, str) and stretch in STRETCHES):
        return stretch
    pair = list(stretch) if isinstance(stretch, Sequence | np.ndarray) and not isinstance(stretch, str) else []
    numbers = [float(v) for v in pair if isinstance(v, Real) and not isinstance(v, bool)]
    if len(numbers) == len(pair) == 2 and all(map(math.isfinite, numbers)) and numbers[0] < numbers[1]:
        return numbers[0], numbers[1]
    raise ValueError(f'stretch must be None, "percentile", "minmax" or (low, high) with low < high, not {stretch!r}')


def to_uint8(name: str, values: np.ndarray, stretch: Stretch = None, *, separate: bool = False) -> np.ndarray:
    """Scale values to [0, 255].

    Without `stretch` the scale is that of the type, so that all images of a dataset are scaled alike: 8 bits stay,
    16 bits (and wider integers with values of 16 bits) are divided by 257, floating point values in [0, 1] are
    multiplied by 255. A stretch maps a range of values to [0, 255] instead, and values outside it to 0 or 255.

    Args:
        name: name of the image, for messages.
        values: (H, W, C), bool, integer or floating point. NaN counts as the low end of the range; infinite values
            as the end on their side. Neither counts for percentiles, minimum and maximum.
        stretch: None; "percentile" (from the 1st to the 99.8th percentile); "minmax"; or (low, high).
        separate: each channel has its own range with "percentile" and "minmax".

    Returns:
        uint8 (H, W, C); `values` itself where nothing is to be done.

    Raises:
        BadRecordError: a type that is no number, or values without a fixed range and no `stretch`.
    """
    if values.dtype == bool:
        return values.view(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "uif":
        raise BadRecordError(name, f"pixels of type {values.dtype} are not numbers; use integers or floats")
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            values = values.astype(np.float64)
    if not values.size or (stretch is None and values.dtype == np.uint8):
        return values.astype(np.uint8, copy=False)
    if stretch is None:
        return _by_type(name, values)
    if not separate:
        return _map(values, *_range(name, values, stretch))
    channels = [values[..., c : c + 1] for c in range(values.shape[-1])]
    return np.concatenate([_map(channel, *_range(name, channel, stretch)) for channel in channels], axis=-1)


def warn_if_dark(name: str, largest: float, limit: float) -> None:
    """Log a warning if the largest value of an image is below 1/8 of the range of its type."""
    if 0 < largest < limit * _DARK:
        warn_once(
            name,
            "dark",
            f"the largest value is {largest:g} of at most {limit:g}, so that the image is nearly black with 8 bits; "
            'pass stretch="percentile" or stretch=(low, high), in training rescale the files',
        )


def warn_once(name: str, kind: str, text: str) -> None:
    """Log a warning about an image, once for each kind and directory."""
    key = (os.path.dirname(name), kind)
    if key in _warned:
        return
    if len(_warned) > 1000:
        _warned.clear()
    _warned.add(key)
    logger.warning("%s: %s (said once for each directory)", name, text)


def _by_type(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        low, high = _finite_range(name, values)
        if low < 0 or high > 1:
            raise BadRecordError(
                name, f"floating point values from {low:g} to {high:g} have no fixed range, which [0, 1] is; {_REMEDY}"
            )
        warn_if_dark(name, high, 1.0)
        return _map(values, 0.0, 1.0)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise BadRecordError(
            name, f"values from {low} to {high} need more than 16 bits or a sign and have no fixed range; {_REMEDY}"
        )
    warn_if_dark(name, high, 65535)
    table = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    return table[values]


def _range(name: str, values: np.ndarray, stretch: Stretch) -> tuple[float, float]:
    """Return the values that become 0 and 255."""
    if isinstance(stretch, tuple):
        return stretch
    low, high = _finite_range(name, values)
    if stretch == "percentile":
        pixels = values.reshape(-1, values.shape[-1])
        sample = pixels[:: max(1, values.size // _SAMPLED)]
        sample = sample[np.isfinite(sample)].astype(np.float64)
        if sample.size:
            with np.errstate(over="ignore", invalid="ignore"):  # between the ends of the range of float64
                bottom, top = (float(v) for v in np.percentile(sample, PERCENTILES))
            if math.isfinite(bottom) and math.isfinite(top) and bottom < top:  # equal where nearly all is background
                return bottom, top
    return low, high


def _finite_range(name: str, values: np.ndarray) -> tuple[float, float]:
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            values = values[finite]
            if not values.size:
                raise BadRecordError(name, "all values are NaN or infinite")
    return float(values.min()), float(values.max())


def _map(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] to [0, 255], rounded; a range of one value to 0."""
    if values.dtype in (np.uint8, np.uint16):
        return _map_floats(np.arange(np.iinfo(values.dtype).max + 1, dtype=np.float64), low, high)[values]
    flat = values.reshape(-1)
    result = np.empty(flat.shape, np.uint8)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        result[start : start + _BLOCK] = _map_floats(block, low, high)
    return result.reshape(values.shape)


def _map_floats(values: np.ndarray, low: float, high: float) -> np.ndarray:
    values = np.clip(np.where(np.isnan(values), low, values), low, high)
    # Halves, because the difference of the largest and the smallest float64 is infinite. 0 for a range of one value.
    width = high / 2 - low / 2
    if width == 0:
        return np.zeros(values.shape, np.uint8)
    return np.rint((values / 2 - low / 2) / width * 255).astype(np.uint8)
