"""Annotation pictures, written only where a whole one is not there already."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ...utils.file_io import write_bytes
from .work import Stage

_FORMATS = {".png": ("PNG", {}), ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"})}


def relabel(values: np.ndarray, table: Mapping[int, int], void: int, dtype: type[np.integer] = np.uint8) -> np.ndarray:
    """Replace every value by what the table says, or by `void` where it says nothing.

    Args:
        values: int (H, W), not negative.
        table: old value -> new value.
        void: new value of all others.
        dtype: of the result, (H, W).
    """
    lookup = np.full(int(values.max(initial=0)) + 1, void, dtype)
    for old, new in table.items():
        if old < len(lookup):
            lookup[old] = new
    return lookup[values]


def is_whole(path: Path, mode: str, size: tuple[int, int]) -> bool:
    """Whether a file is an undamaged picture of this mode and size (height, width)."""
    try:
        with Image.open(path) as picture:
            if picture.format == "PNG":
                picture.verify()  # the checksums of all parts up to the last; decoding forgives a lost end
            else:
                picture.load()
            return picture.mode == mode and picture.size == (size[1], size[0])
    except MemoryError:
        raise
    except Exception:  # Pillow's plug-ins raise many kinds on a broken file, and all mean the same here
        return False


def ensure_picture(
    path: Path, mode: str, size: tuple[int, int], make: Callable[[], np.ndarray], overwrite: bool
) -> Stage:
    """Make a picture unless it is there and whole.

    Args:
        path: ends with .png or .tif (compressed without loss).
        mode: of Pillow, which the pixels of `make` lead to: "L" (uint8), "I;16" (uint16), "RGB".
        size: height and width.
        make: gives the pixels, (H, W) or (H, W, 3).
        overwrite: make it in any case.
    """
    present = path.exists()
    if present and not overwrite and is_whole(path, mode, size):
        return Stage.KEPT
    picture = Image.fromarray(make())
    assert (picture.mode, picture.size) == (mode, (size[1], size[0])), (picture, mode, size)
    name, options = _FORMATS[path.suffix]
    buffer = io.BytesIO()
    picture.save(buffer, format=name, **options)
    write_bytes(path, buffer.getvalue())
    return Stage.REPAIRED if present and not overwrite else Stage.WRITTEN


def place_picture(source: Path, target: Path, overwrite: bool) -> None:
    """Put a picture under another name: a hard link where the file system allows, else a copy."""
    if target.exists() and not overwrite and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_bytes(target, source.read_bytes())
