"""TIFF stacks with described axes (OME, ImageJ and the like) and sample formats that Pillow does not read."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from math import prod
from typing import IO, Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..errors import BadRecordError
from .image_pages import (
    ArrayPages,
    ImagePages,
    Layout,
    Page,
    check_pixels,
    default_names,
    reading,
    take,
)
from .image_scaling import warn_once

SUBFILE, BITS, PHOTOMETRIC, DESCRIPTION, ORIENTATION, SAMPLES, PLANES = 254, 258, 262, 270, 274, 277, 284
# Private tags of microscopes: Zeiss LSM, MetaMorph STK (two), FluoView, Micro-Manager.
_STACK_TAGS = (34412, 33628, 33629, 34361, 51123)
_MOST_PLANES = 1_000_000  # in the description of a file, which may say anything
_READABLE = (0, 1, 2, 3)  # photometric interpretations: white or black is 0, RGB, palette


def check_page_list(name: str, file: IO[bytes], most: int | None = None) -> None:
    """Check that the list of pages of a TIFF ends inside the file: a truncated stack is not read as a short one.

    Args:
        name: of the file, for messages.
        file: open for reading and seeking.
        most: largest number of pages; None: any.

    Raises:
        BadRecordError: it does not, or has more pages.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(16)
    order = "<" if start.startswith(b"II") else ">"
    big = start[2:4] in (b"+\0", b"\0+")  # BigTIFF
    number, offsets, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    seen: set[int] = set()
    position = 8 if big else 4  # of the offset of the next page
    while True:
        file.seek(position)
        data = file.read(struct.calcsize(offsets))
        (page,) = struct.unpack(order + offsets, data) if len(data) == struct.calcsize(offsets) else (size,)
        if page == 0:
            return
        file.seek(page if page < size else size)
        data = file.read(struct.calcsize(number))
        if len(data) < struct.calcsize(number):
            raise BadRecordError(name, f"the TIFF is truncated: it goes on after its {len(seen)} complete pages")
        if page in seen:
            raise BadRecordError(name, f"the TIFF is damaged: after {len(seen)} pages its list of pages is a circle")
        if most is not None and len(seen) >= most:
            raise BadRecordError(name, f"the TIFF has more than {most} pages")
        seen.add(page)
        position = page + len(data) + entry * struct.unpack(order + number, data)[0]


def is_described_stack(image: Image.Image, frames: int) -> bool:
    """Return whether a TIFF that Pillow has opened has axes that Pillow does not know.

    They are in the description of the stack; or a gray image has several samples, which are channels.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(PHOTOMETRIC) in (0, 1) and tags.get(SAMPLES, 1) != len(image.getbands()):
        return True
    text = tags.get(DESCRIPTION, "")
    text = text if isinstance(text, str) else ""
    if text.startswith("ImageJ="):
        counts = re.findall(r"^images=(\d{1,9})", text, re.MULTILINE)
        return frames > 1 or any(int(count) > 1 for count in counts)
    if text.startswith("{") and '"shape"' in text:
        planes = _numbers_of(text) // (image.width * image.height * len(image.getbands()))
        return frames > 1 or planes > 1
    return frames > 1 and ("<OME" in text or any(tag in tags for tag in _STACK_TAGS))


def has_deep_planes(image: Image.Image) -> bool:
    """Return whether a TIFF that Pillow has opened stores 16-bit channels one after the other.

    Without compression Pillow reads them as if they were interleaved, and gives other colors without an error.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, 1)
    return bool(tags.get(PLANES) == 2 and max(bits if isinstance(bits, tuple) else (bits,)) > 8)


def open_tiff(name: str, file: IO[bytes]) -> ImagePages:
    """Open a TIFF with tifffile. Decoding some compressions needs the package imagecodecs too.

    Args:
        name: of the file, for messages.
        file: open for reading; it stays open as long as pages are read.

    Raises:
        BadRecordError: no tifffile, or a damaged, unsupported or too large file.
    """
    try:
        import tifffile
    except ImportError as error:
        raise BadRecordError(
            name, "this kind of TIFF (a stack, or other samples than 8-bit color) needs tifffile: pip install tifffile"
        ) from error
    with reading(name):
        file.seek(0)
        tiff = tifffile.TiffFile(file, name=name, _multifile=False)  # no other files, which OME may name
        description = tiff.pages.first.description
        names = _check_ome(name, description) if "<OME" in description else ()
        series = tiff.series
        if not series:
            raise BadRecordError(name, "there is no image in this TIFF")
        if len(series) > 1:
            warn_once(name, "series", f"the file has {len(series)} series of images, the first one is read")
        return _TiffPages(name, series[0], names)


class _TiffPages(ImagePages):
    """The first series of a TIFF."""

    def __init__(self, name: str, series: Any, names: Sequence[str]) -> None:
        self.name, self._series = name, series
        axes, shape = str(series.axes), tuple(int(n) for n in series.shape)
        height, width = (shape[axes.find(a)] if a in axes else 0 for a in "YX")
        if not height or not width or axes.find("Y") > axes.find("X"):
            raise BadRecordError(name, f"a TIFF with the axes {axes} {shape} is no image")
        position = axes.find("S") if "S" in axes else axes.find("C")
        self._layout = Layout(axes, shape, None if position < 0 else position)
        self.count = self._layout.count
        page = series.keyframe
        check_pixels(name, width, height, max(1, page.size // max(1, page.imagewidth * page.imagelength)))
        if page.photometric not in _READABLE:
            raise BadRecordError(
                name, f"TIFF with colors of kind {int(page.photometric)} is not supported here; save it as RGB"
            )
        self._tail = len(page.shape)
        self._by_page = shape[len(shape) - self._tail :] == tuple(page.shape) and series.transform is None
        self._color = page.photometric == 2 and position >= 0 and axes[position] == "S"
        self.declared = set(self._layout.axes) <= set("TZCYXS") and self.count > 1
        channels = self._layout.channels
        self._names = tuple(names) if len(names) == channels > 1 else default_names(channels, self._color)
        self._last: tuple[int, np.ndarray] | None = None  # the plane that was decoded last

    def page(self, index: int) -> Page:
        if self._series.keyframe.photometric == 3 and self._layout.channel is None:
            return Page(default_names(3, True), True, lambda indices: take(self._palette(index), indices))
        return Page(self._names, self._color, lambda indices: self._read(index, indices))

    def _read(self, page: int, indices: Sequence[int]) -> np.ndarray:
        with reading(self.name):
            if not self._by_page:
                array = ArrayPages(self.name, self._complete(), self._layout).page(page).read(indices)
                return self._turned(self._darkest_first(array))
            planes = []
            for channel in indices:
                index = self._layout.index(page)
                if self._layout.channel is not None:
                    index[self._layout.channel] = channel
                planes.append(self._plane(index))
            return self._turned(self._darkest_first(np.stack(planes, axis=2)))

    def _complete(self) -> np.ndarray:
        """Return the whole series, for layouts whose pages cannot be read one by one."""
        check_pixels(self.name, prod(self._layout.shape), 1)
        return np.asarray(self._series.asarray(maxworkers=1))

    def _plane(self, index: list[Any]) -> np.ndarray:
        """Return (H, W) at an index of all axes but Y and X."""
        leading = len(index) - self._tail
        number = 0
        for size, position in zip(self._layout.shape[:leading], index[:leading]):
            number = number * size + position
        if self._last is None or self._last[0] != number:
            self._last = number, self._decode(number, prod(self._layout.shape[:leading]))
        return self._last[1][tuple(index[leading:])]

    def _decode(self, number: int, count: int) -> np.ndarray:
        series, keyframe = self._series, self._series.keyframe
        if count == 1 or len(series) == count:
            page = series[number]
            if page is None:
                raise BadRecordError(self.name, f"plane {number} of {count} is missing in this file")
            ends = (start + size for start, size in zip(page.dataoffsets, page.databytecounts))
            if max(ends, default=0) > series.parent.filehandle.size:  # tifffile would fill up with zeros
                raise BadRecordError(self.name, f"the file is truncated in plane {number} of {count}")
            return page.asarray(maxworkers=1)
        offset = series.dataoffset
        if offset is None:
            return self._complete().reshape(count, *keyframe.shape)[number]
        # ImageJ describes the planes of a large stack by the first one; the others follow it, without compression.
        dtype = np.dtype(series.parent.byteorder + keyframe.dtype.char)
        size = prod(keyframe.shape)
        file = series.parent.filehandle
        file.seek(offset + number * size * dtype.itemsize)
        data = file.read(size * dtype.itemsize)
        if len(data) < size * dtype.itemsize:
            raise BadRecordError(self.name, f"the file is truncated in plane {number} of {count}")
        return np.frombuffer(data, dtype).reshape(keyframe.shape)

    def _palette(self, page: int) -> np.ndarray:
        """Return (H, W, 3) uint8 of a page whose values are indices of colors."""
        colors = np.asarray(self._series.keyframe.colormap)
        indices = self._read(page, [0])[:, :, 0]
        if colors.ndim != 2 or colors.shape[0] != 3 or (indices.size and int(indices.max()) >= colors.shape[1]):
            raise BadRecordError(self.name, "the palette of this TIFF is incomplete")
        return (colors.T[indices] >> 8).astype(np.uint8)

    def _darkest_first(self, values: np.ndarray) -> np.ndarray:
        """Invert integers that count from white, as Pillow does."""
        if self._series.keyframe.photometric != 0 or values.dtype.kind not in "ub":
            return values
        return ~values

    def _turned(self, values: np.ndarray) -> np.ndarray:
        """Apply the orientation tag."""
        tag = self._series.keyframe.tags.get(ORIENTATION)
        return turned(values, 1 if tag is None else int(tag.value))


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation of EXIF or TIFF (1 to 8) to (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _check_ome(name: str, text: str) -> tuple[str, ...]:
    """Check the numbers in a description before it is believed, and return the names of the channels.

    Raises:
        BadRecordError: entities, which OME does not need, or numbers for which no memory would be enough.
    """
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise BadRecordError(name, "the OME description declares XML entities, which it does not need; remove them")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return ()  # tifffile reads the pages without it
    names: list[str] | None = None
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        sizes = [_number(element.get(key)) for key in ("SizeC", "SizeZ", "SizeT", "PlaneCount", "NumPlanes")]
        planes = prod(max(1, size) for size in sizes)
        if tag[:-1] == "ModuloAlong" and "Start" in element.attrib:
            step = abs(_number(element.get("Step", "1")))
            planes = abs(_number(element.get("End")) - _number(element.get("Start"))) / step if step else np.inf
        if not planes <= _MOST_PLANES:
            raise BadRecordError(name, f"the OME description speaks of more than {_MOST_PLANES:,} planes ({tag})")
        if tag == "Pixels" and names is None:
            channels = (child for child in element if child.tag.rpartition("}")[2] == "Channel")
            names = [channel.get("Name", "") for channel in channels]
    return tuple(names or ())


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _numbers_of(text: str) -> int:
    """Return how many values an array has whose shape is in a description of tifffile."""
    try:
        shape = json.loads(text)["shape"]
        return prod(int(n) for n in shape)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0
