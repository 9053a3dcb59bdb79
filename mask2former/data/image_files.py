"""Open image files: the content decides on the format, sizes are checked before memory is allocated."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO

import cv2
import numpy as np
from numpy.lib import format as npy_format
from PIL import Image, UnidentifiedImageError

from ..errors import BadRecordError
from .image_pages import (
    ArrayPages,
    ImagePages,
    Layout,
    PagesAsChannels,
    PillowPages,
    array_layout,
    check_pixels,
    reading,
)
from .image_scaling import Stretch, warn_if_dark
from .tiff_pages import ORIENTATION, SUBFILE, check_page_list, has_deep_planes, is_described_stack, open_tiff, turned

# What Pillow may decode, whatever the suffix: the content decides. No EPS, which would start Ghostscript, and none of
# the many formats that nobody trains on. JPEG includes MPO.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")

_LONG_READ = 2**20  # bytes; a shorter read is not worth looking at the size of the file
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def open_with_pillow(file: IO[bytes]) -> Image.Image:
    """Open an image of one of FORMATS; raises what Pillow raises."""
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])  # old versions have no AVIF


class _BoundedReader(io.BufferedReader):
    """A file that allocates no more for a read than it has: damaged lengths in a file ask for gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LONG_READ:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_regular(path: str) -> BinaryIO:
    """Open a regular file; pipes and devices, which may never end, are refused without waiting for them.

    Raises:
        FileNotFoundError: there is no such file, or it is a directory.
        BadRecordError: it cannot be opened.
    """
    if not path or "\0" in path:
        raise BadRecordError(path.replace("\0", "?") or "''", "this is not a valid file name")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        kind = os.stat(path).st_mode
        descriptor = os.open(path, flags) if stat.S_ISREG(kind) else -1
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {path!r} does not exist") from error
    except OSError as error:
        raise BadRecordError(path, f"cannot be opened: {error.strerror or error}") from error
    if stat.S_ISDIR(kind):
        raise FileNotFoundError(f"image {path!r} is a directory; pass the images in it")
    if descriptor >= 0 and not stat.S_ISREG(os.fstat(descriptor).st_mode):  # replaced since
        os.close(descriptor)
        descriptor = -1
    if descriptor < 0:
        raise BadRecordError(path, "is a pipe or device, not a file; pass the bytes that you read from it")
    return _BoundedReader(io.FileIO(descriptor, "rb"))


@contextmanager
def opened_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file of one of FORMATS with Pillow, whatever its suffix; its pixels are not decoded yet.

    Raises:
        FileNotFoundError, BadRecordError: as `open_regular`; and what Pillow raises for other content.
    """
    with open_regular(os.fspath(path)) as file, open_with_pillow(file) as image:
        yield image


def array_pages(name: str, array: np.ndarray, page: Any, channels: Any, stretch: Stretch) -> ArrayPages:
    """Return the pages of an array in memory or on disk; see `array_layout`."""
    layout = array_layout(name, array.shape, page, channels)
    return ArrayPages(name, checked_type(name, array, stretch), layout)


def checked_type(name: str, array: np.ndarray, stretch: Stretch) -> np.ndarray:
    """Refuse what is not numbers, and integers that may mean 8 or 16 bits: the type of an array gives its scale."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "buif" or (stretch is None and (kind == "i" or (kind == "u" and size > 2))):
        hint = "" if kind not in "ui" else "; convert it with array.astype('uint8'), or pass stretch=(low, high)"
        raise ValueError(f"{name} must be uint8, uint16 or floating point in [0, 1], not {array.dtype}{hint}")
    return array


def file_pages(name: str, file: IO[bytes], page: Any, channels: Any, stretch: Stretch) -> ImagePages:
    """Return the pages of an opened file, whose first bytes decide on the format.

    Args:
        name: of the file, for messages.
        file: open for reading and seeking; it stays open as long as pages are read.
        page, channels, stretch: as given to `load_image`: what is ambiguous depends on what is selected.

    Raises:
        BadRecordError: the content is damaged, unsupported, ambiguous or too large.
    """
    with reading(name):
        start = file.read(32)
        file.seek(0)
    if start.startswith(b"\x93NUMPY"):
        with reading(name):
            array = _npy_array(name, file)
        try:
            pages = array_pages(name, array, page, channels, stretch)
        except ValueError as error:
            raise BadRecordError(name, str(error).removeprefix(f"{name} ")) from error
        width, height = (pages.layout.shape[pages.layout.axes.find(axis)] for axis in "XY")
        check_pixels(name, width, height)
        return pages
    if start.startswith(b"PK\3\4"):
        raise BadRecordError(name, "is a zip or .npz file; pass one array of it: numpy.load(file)['name']")
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return PillowPages(name, _open_heif(name, file))
    with reading(name):
        if start.startswith(_TIFF_STARTS):
            check_page_list(name, file)
            file.seek(0)
        try:
            image = open_with_pillow(file)
        except UnidentifiedImageError as error:
            if start.startswith(_TIFF_STARTS):
                return _stack(open_tiff(name, file), page, channels)
            hint = ", which needs a newer Pillow: pip install -U pillow" if start[8:12] in (b"avif", b"avis") else ""
            known = f"it is none of {', '.join(FORMATS)}, HEIF and .npy, or damaged{hint}"
            raise BadRecordError(name, f"cannot be read as an image: {known}") from error
        check_pixels(name, *image.size)
        deep = _is_deep(image)
        if image.format == "TIFF":
            described = is_described_stack(image, getattr(image, "n_frames", 1))
            exact = has_deep_planes(image) or (deep and stretch is not None)
            if described or exact or not _decodes(image):
                return _stack(open_tiff(name, file), page, channels)
        if deep and image.format == "PNG" and stretch is not None:
            return _deep_png(name, file, image)
        if deep:
            warn_if_dark(name, max(high for _, high in _extrema(image)), 255)
        return image_pages(name, image, page, channels)


def image_pages(name: str, image: Image.Image, page: Any, channels: Any, *, current: bool = False) -> ImagePages:
    """Return the frames of an image that Pillow has opened, without the small versions that some TIFF files hold.

    Args:
        current: take only the frame at which the image is.
    """
    frames = None
    count = 1 if current else int(getattr(image, "n_frames", 1))
    if count > 1:
        frames = list(range(count))
        if image.format == "TIFF":
            frames = [i for i in frames if not _is_reduced(image, i)] or [0]
    return _stack(PillowPages(name, image, frames), page, channels)


def page_count(image: Image.Image) -> int:
    """Return the number of pages of an image that Pillow has opened, small versions left out; it stays at its frame."""
    count, frame = int(getattr(image, "n_frames", 1)), image.tell()
    if count > 1 and image.format == "TIFF":
        count = max(1, sum(not _is_reduced(image, i) for i in range(count)))
        image.seek(frame)
    return count


def _is_reduced(image: Any, frame: int) -> bool:
    image.seek(frame)
    value = image.tag_v2.get(SUBFILE, 0)
    return bool(isinstance(value, int) and value & 1)


def _stack(pages: ImagePages, page: Any, channels: Any) -> ImagePages:
    """Take the pages for channels where channels are selected, pages are not, and the file does not say."""
    if channels is None or page is not None or pages.declared or pages.count == 1 or len(pages.page(0).names) > 1:
        return pages
    return PagesAsChannels(pages)


def _decodes(image: Image.Image) -> bool:
    """Return whether Pillow knows the samples of a TIFF; raises OSError if it is damaged."""
    try:
        image.load()
    except ValueError:  # unknown raw mode
        return False
    return True


def _is_deep(image: Any) -> bool:
    """Return whether Pillow will reduce 16-bit color to 8 bits."""
    return image.mode in ("RGB", "RGBA", "RGBX", "LA") and ";16" in str([tile[3] for tile in image.tile])


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    image.load()
    values = image.getextrema()
    return list(values)[:3] if isinstance(values[0], tuple) else [values]  # type: ignore[list-item,return-value]


def _deep_png(name: str, file: IO[bytes], image: Image.Image) -> ImagePages:
    """Decode all bits of a PNG with 16-bit color, which Pillow does not."""
    orientation = image.getexif().get(ORIENTATION, 1)
    file.seek(0)
    values = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.dtype != np.uint16 or values.shape[2] < 3:
        raise BadRecordError(name, "the 16-bit color of this PNG cannot be decoded")
    values = turned(values[:, :, 2::-1], orientation if orientation in range(1, 9) else 1)
    return ArrayPages(name, values, Layout("YXS", values.shape, 2))


def _open_heif(name: str, file: IO[bytes]) -> Image.Image:
    with reading(name), suppress(UnidentifiedImageError):
        return open_with_pillow(file)  # some brands may be AVIF too
    file.seek(0)
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise BadRecordError(name, "HEIC and HEIF files need pillow-heif: pip install pillow-heif") from error
    with reading(name):
        image = HeifImageFile(file)  # not registered with Pillow, which would change it for the whole program
        check_pixels(name, *image.size)
        return image


def _npy_array(name: str, file: IO[bytes]) -> np.ndarray:
    """Return the array of a `.npy` file, mapped if it is on disk: nothing is allocated that is not in the file."""
    version = npy_format.read_magic(file)
    read_header = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}.get(version)
    if read_header is None:
        raise BadRecordError(name, f".npy format {version} is only for tables; save a plain array")
    start, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(start)
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > end - file.tell():  # NumPy allocates what the file says
        raise BadRecordError(name, f"the file is truncated: its header has {length} bytes")
    file.seek(start)
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise BadRecordError(name, "the .npy file holds Python objects, which could run code, and no image")
    if min(shape, default=1) < 0:
        raise BadRecordError(name, f"the shape {shape} has negative numbers")
    count = int(np.prod(shape, dtype=object))
    offset = file.tell()
    if file.seek(0, os.SEEK_END) - offset < count * dtype.itemsize:
        raise BadRecordError(name, f"the file is truncated: its header says {shape} {dtype}")
    if not count or not dtype.itemsize:
        return np.zeros(shape, dtype) if not count else np.zeros(0, dtype)
    order: Any = "F" if fortran else "C"
    if isinstance(file, io.BytesIO):
        return np.frombuffer(file.getbuffer(), dtype, count, offset).reshape(shape, order=order)
    return np.memmap(file, dtype, "r", offset, shape, order)  # type: ignore[call-overload]
