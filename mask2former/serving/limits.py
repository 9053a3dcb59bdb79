"""What is accepted from strangers: types of files by their content, and sizes, before anything is decoded."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..data.image_files import open_with_pillow
from ..data.image_sources import load_image
from ..data.tiff_pages import check_page_list
from ..errors import BadRecordError
from .errors import ServingError, TooLargeError, UnreadableImageError, UnsupportedTypeError

logger = logging.getLogger(__name__)

# Formats that cameras, phones, scanners and microscopes write. Decoders that nobody asks for are only a risk.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
VIDEO_FORMATS = ("MP4", "MOV", "WEBM", "MKV", "AVI")

_MOST_PAGES = 10_000  # of a TIFF: the list of them is walked
_NAME = "this image"
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class Limits:
    """Limits on what a request may hold.

    Attributes:
        max_bytes: of an image file.
        max_pixels: of an image, height times width.
        max_side: pixels, of height and width.
        max_video_bytes: of a video file.
        max_video_seconds: length of a video.
        max_video_pixels: of a frame of a video.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 40_000_000
    max_side: int = 20_000
    max_video_bytes: int = 200 << 20
    max_video_seconds: float = 60.0
    max_video_pixels: int = 2560 * 1440

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} must be a number above 0, not {value!r}")


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image say: its format, and its size before the orientation is applied."""

    format: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Return height times width."""
        return self.width * self.height


def read_header(data: bytes, limits: Limits) -> ImageHeader:
    """Read format and size of an image file, and check both; no pixel is decoded.

    Raises:
        TooLargeError: more bytes or pixels than the limits allow.
        UnsupportedTypeError: the content is no image of `IMAGE_FORMATS`, whatever name or type the sender gave it.
        UnreadableImageError: it is empty, or its header is damaged.
    """
    if not data:
        raise UnreadableImageError("the image is empty: it has 0 bytes")
    if len(data) > limits.max_bytes:
        raise TooLargeError(f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,}")
    kind = image_format(data)
    if kind is None:
        raise UnsupportedTypeError(f"the content is no image of a known type; send {', '.join(IMAGE_FORMATS)}")
    try:
        if kind == "TIFF":
            check_page_list(_NAME, io.BytesIO(data), _MOST_PAGES)
        with _open(kind, io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise TooLargeError(f"the image has too many pixels; the limit is {limits.max_pixels:,}") from None
    except UnsupportedTypeError:
        raise
    except Exception as error:  # decoders raise all kinds of them
        raise UnreadableImageError(f"this {kind} image is damaged: {_reason(error)}") from None
    header = ImageHeader(kind, width, height)
    check_size(header, limits)
    return header


def check_size(header: ImageHeader, limits: Limits) -> None:
    """Check the size of an image.

    Raises:
        TooLargeError: more pixels, or a longer side, than the limits allow.
        UnreadableImageError: no pixels.
    """
    size = f"{header.width}x{header.height}"
    if header.width < 1 or header.height < 1:
        raise UnreadableImageError(f"the image has no pixels: {size}")
    if header.pixels > limits.max_pixels or max(header.width, header.height) > limits.max_side:
        raise TooLargeError(
            f"the image has {size} pixels; the limit is {limits.max_pixels:,} pixels, {limits.max_side:,} on a side"
        )


def decode_image(data: bytes, limits: Limits) -> np.ndarray:
    """Decode an image file that passes `read_header`: uint8 (H, W, 3) RGB, of several pages the first.

    Raises:
        TooLargeError, UnsupportedTypeError, UnreadableImageError: as `read_header`; and content that is damaged.
    """
    header = read_header(data, limits)
    try:
        return check_array(load_image(data, page=0), limits)
    except ServingError:
        raise
    except BadRecordError as error:
        raise UnreadableImageError(f"this {header.format} image cannot be read: {error.reason[:200]}") from None
    except Exception as error:
        logger.info("an image cannot be decoded", exc_info=True)
        raise UnreadableImageError(f"this {header.format} image is damaged: {_reason(error)}") from None


def check_array(array: np.ndarray, limits: Limits) -> np.ndarray:
    """Check an image that is decoded already, uint8 (H, W, 3), and return it.

    Raises:
        UnreadableImageError: another type or shape.
        TooLargeError: more pixels than the limits allow.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UnreadableImageError(f"an image must be uint8 (H, W, 3), not {array.dtype} {array.shape}")
    check_size(ImageHeader("array", array.shape[1], array.shape[0]), limits)
    return array


# ------------------------------------------------------------------ types
def image_format(data: bytes) -> str | None:
    """Return which of `IMAGE_FORMATS` the first bytes belong to, None: no image that is accepted."""
    for start, name in _STARTS.items():
        if data.startswith(start):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIF" if data[8:12] in _HEIF_BRANDS else None
    return None


def video_format(start: bytes) -> str | None:
    """Return which of `VIDEO_FORMATS` the first 64 bytes of a file belong to, None: no video that is accepted."""
    if start[4:8] == b"ftyp" and image_format(start) is None:
        return "MOV" if start[8:12] == b"qt  " else "MP4"
    if start[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):  # old QuickTime files
        return "MOV"
    if start.startswith(b"\x1aE\xdf\xa3"):
        return "WEBM" if b"webm" in start else "MKV"
    return "AVI" if start[:4] == b"RIFF" and start[8:12] == b"AVI " else None


def _open(kind: str, file: io.BytesIO) -> Any:
    if kind != "HEIF":
        try:
            return open_with_pillow(file)
        except UnidentifiedImageError:
            if kind == "AVIF" and "AVIF" not in Image.OPEN:
                raise UnsupportedTypeError("this server cannot read AVIF; send JPEG or PNG") from None
            raise
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnsupportedTypeError("this server cannot read HEIC and HEIF; send JPEG or PNG") from None
    return HeifImageFile(file)


def _reason(error: Exception) -> str:
    """Return the first line of what a decoder says; of ours, without the name that is no file's."""
    text = error.reason if isinstance(error, BadRecordError) else str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        text = "its header cannot be read"
    return text.splitlines()[0][:200]
