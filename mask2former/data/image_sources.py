"""Load images from files, bytes, arrays and tensors, also scientific ones: stacks, many channels, 16 bits, floats.

`load_image` gives what the network takes, uint8 (H, W, 3) RGB; training reads its images with the same functions.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from ..errors import BadRecordError
from ..utils.hints import did_you_mean
from ..utils.text_files import expand_home
from .image_files import array_pages, checked_type, file_pages, image_pages, open_regular
from .image_pages import ArrayPages, ImagePages, Layout, Page, reading
from .image_scaling import Stretch, check_stretch, to_uint8, warn_once

ImageSource = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | torch.Tensor
)
Channels = int | str | Sequence[int | str | None] | None

PIL_IMAGE = "this PIL image"  # its name in messages
_MOST_BYTES = 4 << 30  # that are read from a stream, which may have no end
_URL = re.compile(r"(https?|ftp|s3|gs|az|file|data):", re.IGNORECASE)


def load_image(
    source: ImageSource, *, page: int | None = None, channels: Channels = None, stretch: Any = None
) -> np.ndarray:
    """Load one image as 8-bit color.

    The orientation of EXIF and TIFF is applied and alpha is dropped.

    Args:
        source: a file (the content decides on the format, not the suffix); its bytes, or a binary file object, which
            is read to its end; a PIL image; an array (H, W), (H, W, 3) or (H, W, 4), a tensor (3, H, W), RGB. Arrays
            and tensors are uint8, uint16, bool, or floating point in [0, 1]; anything with `stretch`.
        page: page of a file or stack, from 0: z, time or any other axis that is not color. Default: the first, with a
            warning where there are more.
        channels: index or name of the channel to show in gray, or three of them for red, green and blue, where None
            stays black. Needed for 2 or more than 4 channels. Pages of an undescribed gray stack can be channels.
        stretch: range of values that becomes [0, 255]: "percentile" (1st to 99.8th), "minmax" or (low, high).
            Percentiles and extremes are those of the page, of each channel by itself if `channels` is given or the
            channels are no colors. Default: the scale of the type, see `image_scaling.to_uint8`.

    Returns:
        uint8 (H, W, 3) in [0, 255]. A uint8 color array is returned without a copy.

    Raises:
        FileNotFoundError: there is no such file.
        BadRecordError (a ValueError): a truncated, unsupported, ambiguous or too large image.
        ValueError: an invalid argument, or a source of another type or shape.
    """
    if isinstance(page, str):
        raise ValueError(f"load_image loads one page, not page={page!r}; use load_pages for all of them")
    return next(iter_pages(source, page=page, channels=channels, stretch=stretch))


def load_pages(
    source: ImageSource, *, page: int | str | None = "all", channels: Channels = None, stretch: Any = None
) -> list[np.ndarray]:
    """Load all pages of an image ("all") or one; see `load_image`. Each is scaled by itself, unless `stretch` is fixed.

    Returns:
        A list of uint8 (H, W, 3).
    """
    return list(iter_pages(source, page=page, channels=channels, stretch=stretch))


def iter_pages(
    source: ImageSource, *, page: int | str | None = "all", channels: Channels = None, stretch: Any = None
) -> Iterator[np.ndarray]:
    """Yield the pages of an image one by one, so that a large stack is never in memory; see `load_pages`."""
    stretch = check_stretch(stretch)
    _check_channels(channels)
    if page is not None and page != "all":
        page = _page_number(page)
    with _opened(source, page, channels, stretch) as pages:
        for index in _page_indices(pages, page):
            with reading(pages.name):
                content = pages.page(index)
            yield _render(pages.name, content, channels, stretch)


def count_pages(path: str | os.PathLike[str]) -> int:
    """Return the number of pages of an image file; previews and depth maps are none.

    Raises:
        FileNotFoundError, BadRecordError: as `load_image`.
    """
    with _opened(path, None, None, None) as pages:
        return pages.count if pages.multipage else 1


# ------------------------------------------------------------------ arguments
def _page_number(page: Any) -> int:
    if isinstance(page, bool) or not isinstance(page, int | np.integer) or page < 0:
        raise ValueError(f'page must be a number from 0 or "all", not {page!r}')
    return int(page)


def _page_indices(pages: ImagePages, page: Any) -> Sequence[int]:
    if page == "all":
        return range(pages.count)
    if page is None:
        if pages.count > 1 and pages.multipage:
            hint = "" if pages.declared else "; if they are the channels of one image: channels=(r, g, b)"
            text = f'the file has {pages.count} pages, page 0 is used; page=i or page="all" selects others{hint}'
            warn_once(pages.name, "pages", text)
        return (0,)
    if page >= pages.count:
        have = "one page" if pages.count == 1 else f"{pages.count} pages, 0 to {pages.count - 1}"
        raise ValueError(f"{pages.name}: there is no page {page}; the image has {have}")
    return (page,)


def _check_channels(channels: Any) -> None:
    items = list(channels) if isinstance(channels, list | tuple) else [channels]
    good = all(i is None or (isinstance(i, str | int | np.integer) and not isinstance(i, bool)) for i in items)
    if not good or len(items) not in (1, 3) or (channels is not None and all(i is None for i in items)):
        raise ValueError(
            "channels must be an index or name, or three of them for red, green and blue (None: black), "
            f"not {channels!r}"
        )


def _select(name: str, page: Page, channels: Any) -> list[int | None]:
    """Return one or three indices of channels, None for black."""
    count = len(page.names)
    if channels is None:
        if count in (1, 3) or (count == 4 and page.color):
            return list(range(min(count, 3)))
        if count == 4:
            warn_once(
                name,
                "channels",
                f"of 4 channels the first three are used as red, green and blue: {page.describe()}; channels=(r, g, b) "
                "selects others",
            )
            return [0, 1, 2]
        raise BadRecordError(
            name, f"{count} channels: {page.describe()}; choose channels=i (gray) or channels=(r, g, b)"
        )
    items = channels if isinstance(channels, list | tuple) else [channels]
    return [None if item is None else _index(name, page, item) for item in items]


def _index(name: str, page: Page, channel: Any) -> int:
    if isinstance(channel, str):
        matches = [i for i, known in enumerate(page.names) if known.casefold() == channel.casefold()]
        if len(matches) == 1:
            return matches[0]
        hint = did_you_mean(channel, filter(None, page.names))
        reason = "is the name of several channels" if matches else f"is not one of the channels.{hint}"
        raise ValueError(f"{name}: {channel!r} {reason} The image has {page.describe()}")
    if not 0 <= channel < len(page.names):
        raise ValueError(f"{name}: there is no channel {channel}; the image has {page.describe()}")
    return int(channel)


def _render(name: str, page: Page, channels: Any, stretch: Stretch) -> np.ndarray:
    """Return a page as uint8 (H, W, 3), contiguous and writable."""
    indices = _select(name, page, channels)
    used = list(dict.fromkeys(i for i in indices if i is not None))
    values = page.read(used)
    if not values.size:
        raise BadRecordError(name, f"the image has no pixels: its shape (H, W, C) is {values.shape}")
    pixels = to_uint8(name, values, stretch, separate=channels is not None or not page.color)
    if len(indices) == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    elif indices != used:
        black = np.zeros(pixels.shape[:2], np.uint8)
        pixels = np.stack([black if i is None else pixels[..., used.index(i)] for i in indices], axis=2)
    pixels = np.ascontiguousarray(pixels)
    # PyTorch warns of read-only arrays, and a mapped file must not outlive its file.
    return pixels if pixels.flags.writeable and type(pixels) is np.ndarray else np.array(pixels)


# ------------------------------------------------------------------ sources
@contextmanager
def _opened(source: Any, page: Any, channels: Any, stretch: Stretch) -> Iterator[ImagePages]:
    """Open a source; files are closed at the end."""
    if isinstance(source, Image.Image):
        with reading(PIL_IMAGE), _same_frame(source):
            yield image_pages(PIL_IMAGE, source, page, channels, current=page is None)
    elif isinstance(source, np.ndarray):
        yield array_pages("an array", np.asarray(source), page, channels, stretch)
    elif isinstance(source, torch.Tensor):
        yield _tensor_pages(source, page, channels, stretch)
    else:
        with _as_file(source) as (name, file):
            yield file_pages(name, file, page, channels, stretch)


@contextmanager
def _same_frame(image: Image.Image) -> Iterator[None]:
    """Leave the image of a caller at its frame."""
    frame = image.tell()
    try:
        yield
    finally:
        if image.tell() != frame:
            image.seek(frame)


@contextmanager
def _as_file(source: Any) -> Iterator[tuple[str, IO[bytes]]]:
    """Open a path, bytes or file object for reading and seeking, and give it a name for messages."""
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        path = expand_home(path)
        if _URL.match(path):
            hint = "pass the path" if path.startswith("file:") else "download it first and pass the path or the bytes"
            raise ValueError(f"{path[:200]!r} is a URL: nothing is loaded from there; {hint}")
        with open_regular(path) as file:
            yield path, file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield "these bytes", io.BytesIO(source)
    elif hasattr(source, "read"):
        label = getattr(source, "name", None)
        name = label if isinstance(label, str) and label else "this file object"
        yield name, io.BytesIO(_read_all(name, source))
    else:
        kinds = "a path, bytes, binary file object, PIL image, numpy array or tensor"
        raise ValueError(f"an image is {kinds}, not {type(source).__name__}")


def _read_all(name: str, source: Any) -> bytes:
    parts: list[bytes] = []
    total = 0
    while total <= _MOST_BYTES:
        try:
            part = source.read(1 << 24)
        except (OSError, ValueError) as error:
            raise BadRecordError(name, f"cannot be read: {error}") from error
        if isinstance(part, str):
            raise ValueError(f"{name} is open in text mode; open it with mode 'rb'")
        if not isinstance(part, bytes | bytearray | memoryview):
            raise ValueError(f"{name}: read() returned {type(part).__name__}, not bytes")
        if not part:
            if not total:
                raise BadRecordError(name, "nothing to read; is the file object at its end? Call seek(0) first")
            return b"".join(parts)
        parts.append(bytes(part))
        total += len(part)
    raise BadRecordError(name, f"more than {_MOST_BYTES >> 30} GiB, which no image needs; pass a path")


def _tensor_pages(tensor: torch.Tensor, page: Any, channels: Any, stretch: Stretch) -> ImagePages:
    shape = tuple(tensor.shape)
    paged = len(shape) == 4 and page is not None
    colors = len(shape) >= 3 and shape[-3] in (1, 3, 4)
    if len(shape) != 2 and (not (len(shape) == 3 or paged) or not (colors or channels is not None)):
        raise ValueError(
            f"a tensor must be uint8 (3, H, W) RGB, not {tensor.dtype} {shape}; pass channels=i or channels=(r, g, b) "
            'for other channels, page=i or page="all" for (N, C, H, W), and a batch as a list of tensors'
        )
    try:
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        array = tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a tensor of type {tensor.dtype} ({tensor.layout}) is no image: {error}") from error
    array = checked_type("a tensor", array, stretch)
    axes = ("Q" if len(shape) == 4 else "") + ("" if len(shape) == 2 else "S" if colors else "C") + "YX"
    return ArrayPages("a tensor", array, Layout(axes, shape, None if len(shape) == 2 else len(shape) - 3))
