"""Images as pages with channels: what arrays, common image files, TIFF stacks and `.npy` files have in common."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import BadRecordError

logger = logging.getLogger(__name__)

RGBA = ("red", "green", "blue", "alpha")
_LISTED = 12


@dataclass(frozen=True)
class Page:
    """One page of an image.

    `names` are those of its channels, "" where there is none; `color` says that they are the samples of a color image,
    not separate measurements; `read` returns some channels as (H, W, len(indices)), of any type.
    """

    names: tuple[str, ...]
    color: bool
    read: Callable[[Sequence[int]], np.ndarray]

    def describe(self) -> str:
        """Return the channels as text, for messages: "0 (DAPI), 1 (FITC)"."""
        texts = [f"{index} ({name})" if name else str(index) for index, name in enumerate(self.names[:_LISTED])]
        return ", ".join(texts) + (f", ... {len(self.names) - 1}" if len(self.names) > _LISTED else "")


class ImagePages(ABC):
    """An opened image: `count` pages.

    `declared` says that it is known that the pages are pages, not channels.
    """

    name: str
    count: int
    declared: bool = False
    multipage: bool = True  # False: further pages are previews or depth maps, which are not worth a warning

    @abstractmethod
    def page(self, index: int) -> Page:
        """Return a page, 0 <= index < count."""


class PagesAsChannels(ImagePages):
    """A gray image with several pages of one size, whose pages are taken for channels."""

    count, declared = 1, True

    def __init__(self, pages: ImagePages) -> None:
        self.name, self._pages = pages.name, pages

    def page(self, index: int) -> Page:
        return Page(("",) * self._pages.count, False, self._read)

    def _read(self, indices: Sequence[int]) -> np.ndarray:
        parts = []
        for index in indices:
            page = self._pages.page(index)
            parts.append(page.read(range(len(page.names))))
            if parts[-1].shape != (*parts[0].shape[:2], 1):
                raise BadRecordError(
                    self.name, f"pages {indices[0]} and {index} cannot be channels of one image: color, or other sizes"
                )
        return np.concatenate(parts, axis=2)


@dataclass(frozen=True)
class Layout:
    """The meaning of the axes of an array: Y, X, one of them for channels or none, and pages in all others."""

    axes: str  # one letter for each axis
    shape: tuple[int, ...]
    channel: int | None  # position of the channels

    @property
    def page_axes(self) -> list[int]:
        """Return the positions of the axes that are pages."""
        return [i for i, axis in enumerate(self.axes) if axis not in "YX" and i != self.channel]

    @property
    def count(self) -> int:
        """Return the number of pages."""
        count = 1
        for axis in self.page_axes:
            count *= self.shape[axis]
        return count

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return 1 if self.channel is None else self.shape[self.channel]

    def index(self, page: int) -> list[Any]:
        """Return an index of all axes, which leaves Y, X and the channels."""
        index: list[Any] = [slice(None)] * len(self.axes)
        for axis in reversed(self.page_axes):
            page, index[axis] = divmod(page, self.shape[axis])
        return index


class ArrayPages(ImagePages):
    """An array in memory or on disk."""

    def __init__(self, name: str, array: np.ndarray, layout: Layout, names: Sequence[str] = ()) -> None:
        self.name, self.count, self.declared = name, layout.count, True
        self._array, self.layout = array, layout
        self._color = layout.channel is not None and layout.axes[layout.channel] == "S"
        self._names = tuple(names) or default_names(layout.channels, self._color)

    def page(self, index: int) -> Page:
        return Page(self._names, self._color, lambda indices: self._read(index, indices))

    def _read(self, page: int, indices: Sequence[int]) -> np.ndarray:
        index = self.layout.index(page)
        if self.layout.channel is None:
            return self._array[tuple(index)][:, :, None]
        values = self._array[tuple(index)]
        position = sum(isinstance(i, slice) for i in index[: self.layout.channel])
        values = np.moveaxis(values, position, -1)
        return take(values, indices)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn every exception about the content of a file into a BadRecordError that names it."""
    try:
        yield
    except (MemoryError, BadRecordError):
        raise
    except Image.DecompressionBombError as error:
        size = re.search(r"\d+", str(error))
        raise too_large(name, f"{int(size[0]) if size else 0:,} pixels") from error
    except Exception as error:  # decoders raise all kinds of them
        hint = ": pip install imagecodecs" if "imagecodecs" in str(error) else ""
        raise BadRecordError(name, f"cannot be read as an image: {error}{hint}") from error


def default_names(count: int, color: bool) -> tuple[str, ...]:
    """Return the names of the channels of a color image, or as many empty ones."""
    if count == 1:
        return ("gray",)
    return RGBA[:count] if color and count in (3, 4) else ("",) * count


def take(values: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Return some channels of (H, W, C), without a copy if they are the first ones."""
    if list(indices) == list(range(len(indices))):
        return values[..., : len(indices)]
    return values[..., list(indices)]


def check_pixels(name: str, width: int, height: int, channels: int = 1) -> None:
    """Check that an image is not larger than Pillow allows, before memory for it is allocated.

    Raises:
        BadRecordError: more than twice PIL.Image.MAX_IMAGE_PIXELS, the limit that Pillow has for its own formats.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height * max(1, channels / 4) > 2 * most:
        raise too_large(name, f"{width}x{height} pixels" + (f" with {channels} channels" if channels > 4 else ""))


def too_large(name: str, size: str) -> BadRecordError:
    """Return the error of an image with too many pixels."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return BadRecordError(
        name,
        f"{size} are more than the limit of {most:,} pixels, which protects against files that fill the memory; cut "
        "the image into tiles or, if you trust it, set PIL.Image.MAX_IMAGE_PIXELS to a larger number (None: no limit)",
    )


def array_layout(name: str, shape: tuple[int, ...], page: Any, channels: Any) -> Layout:
    """Return the meaning of the axes of an array without description; what is ambiguous has to be said.

    (H, W), (H, W, 1), (H, W, 3) and (H, W, 4) are one image. With `page` (not None) the first axis of other arrays
    is that of the pages; with `channels`, the shorter one of first and last (without pages) axis is that of channels.

    Raises:
        ValueError: another shape, or a shape that needs `page` or `channels`.
    """
    colors = len(shape) > 2 and shape[-1] in (1, 3, 4)
    if len(shape) == 2:
        return Layout("YX", shape, None)
    if len(shape) == 3 and colors:
        return Layout("YXS", shape, 2)
    if len(shape) == 3 and channels is not None and page is None:
        return Layout("CYX", shape, 0) if shape[0] <= shape[2] else Layout("YXC", shape, 2)
    if len(shape) == 3 and page is not None:
        return Layout("QYX", shape, None)
    if len(shape) == 4 and page is not None and colors:
        return Layout("QYXS", shape, 3)
    if len(shape) == 4 and page is not None and channels is not None:
        return Layout("QCYX", shape, 1) if shape[1] <= shape[3] else Layout("QYXC", shape, 3)
    raise ValueError(
        f"{name} must be (H, W), (H, W, 3) or (H, W, 4), not {shape}; pass channels=i or channels=(r, g, b) for other "
        'channels, page=i or page="all" where the first axis is that of pages, and a batch as a list'
    )


class PillowPages(ImagePages):
    """An image that Pillow has opened; a frame is decoded when it is read."""

    def __init__(self, name: str, image: Image.Image, frames: Sequence[int] | None = None) -> None:
        """Take over an image. `frames`: those that are pages; None: the current one."""
        self.name, self._image = name, image
        self._frames = frames
        self.count = 1 if frames is None else len(frames)
        self.multipage = image.format not in ("HEIF", "JPEG", "MPO")

    def page(self, index: int) -> Page:
        if self._frames is not None and self._image.tell() != self._frames[index]:
            self._image.seek(self._frames[index])
        if self._frames is not None:
            check_pixels(self.name, *self._image.size)
        values = pillow_values(self.name, self._image)
        names = ("gray",) if values.shape[2] == 1 else RGBA[:3]
        return Page(names, True, lambda indices: take(values, indices))


def pillow_values(name: str, image: Image.Image) -> np.ndarray:
    """Return the pixels of a PIL image (H, W, 1) or (H, W, 3), turned as its EXIF block says, without alpha.

    Gray of 8, 16 or 32 bits and floating point values are unchanged; all else becomes 8-bit color.

    Raises:
        BadRecordError: a mode that Pillow cannot convert.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # a broken EXIF block must not make the image unusable
        logger.debug("%s: EXIF orientation ignored: %s", name, error)
    if image.mode in ("I", "F", "L") or image.mode.startswith("I;16"):
        return np.array(image)[:, :, None]
    if image.mode == "1":
        return np.array(image.convert("L"))[:, :, None]
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion to RGB
    try:
        # Copy: Pillow's buffer is read-only, and PyTorch warns when a tensor is made of a read-only array.
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise BadRecordError(name, f"pixels of mode {image.mode} cannot be converted to RGB") from error
