"""Read images of any common format as 8-bit color, label maps and panoptic PNG files; one error if they are broken."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..errors import BadRecordError
from ..structures.panoptic_ids import rgb_to_id
from ..utils.downloads import open_path
from .image_files import open_regular, open_with_pillow, opened_image, page_count
from .image_sources import load_image

IMAGE_FORMATS = ("RGB", "BGR")

# Endings of file names, compared in lower case.
IMAGE_SUFFIXES = frozenset(
    {
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
        *(".jpf", ".jpg", ".jpx", ".mpo", ".npy", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga"),
        *(".tif", ".tiff", ".webp"),
    }
)
LABEL_MAP_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff"})  # lossless, with one channel
WRITABLE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})  # true color


def image_names(names: Iterable[str], suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """Return the names of the images among the files of one directory, in the given order.

    Hidden files are left out, and `.npy` files beside other images, which are masks or features of these.
    """
    images = [name for name in names if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")]
    others = [name for name in images if not name.lower().endswith(".npy")]
    return others or images


def read_image(path: str, image_format: str = "RGB") -> np.ndarray:
    """Read an image file as 8-bit color, as `load_image` does without options.

    Gray, palette, CMYK and bilevel images are converted to color, alpha is dropped, the EXIF orientation is applied.
    16-bit gray is divided by 257, so that 65535 becomes 255 and every image of a dataset is scaled alike; floating
    point values in [0, 1] are multiplied by 255. Rescale the values beforehand if they use only a part of the range.
    Of a file with several pages the first is read, with a warning.

    Args:
        path: file name or URL; see `utils.downloads.open_path`.
        image_format: order of the channels, "RGB" or "BGR".

    Returns:
        uint8 (H, W, 3) in [0, 255].

    Raises:
        BadRecordError: the file is missing, truncated, too large or not an image, has 2 or more than 4 channels, or
            its values have no fixed range.
        ValueError: unknown `image_format`.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT is {image_format!r}, use one of {', '.join(IMAGE_FORMATS)}")
    if not isinstance(path, str) or not path:
        raise BadRecordError(str(path), "the record has no valid file name")
    try:
        if "://" in path:
            with open_path(path) as file:
                pixels = load_image(file)
        else:
            pixels = load_image(path)
    except BadRecordError as error:
        raise BadRecordError(path, error.reason) from error
    except FileNotFoundError as error:
        reason = "is a directory, not an image" if os.path.isdir(path) else "the file does not exist"
        if "://" in path:
            reason = str(error)
        raise BadRecordError(path, reason) from error
    except (OSError, ValueError) as error:
        raise BadRecordError(path, f"cannot be read as an image: {error}") from error
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def image_size(path: Any) -> tuple[int, int] | None:
    """Read height and width of the image that `read_image` returns from the head of the file, without decoding it.

    Returns:
        The size; None for URLs, arrays (.npy), and files that Pillow cannot open. The EXIF orientation of a PNG is not
        known.
    """
    if not isinstance(path, str) or "://" in path:
        return None
    try:
        with opened_image(path) as image:
            width, height = image.size
            # Pillow decodes a PNG to find its EXIF block, which few have.
            exif: Any = {} if image.format == "PNG" else image.getexif()
            turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except MemoryError:
        raise
    except Exception:  # any of Pillow's plug-ins on a broken file; whoever reads the image reports it
        return None
    return (width, height) if turned else (height, width)


def read_panoptic_png(path: str) -> np.ndarray:
    """Read segment ids from a PNG in the COCO panoptic format, id = R + 256 G + 65536 B.

    Returns:
        int32 (H, W), 0 where there is no segment.

    Raises:
        BadRecordError: the file is missing, truncated or not an RGB image.
    """
    image = _open(path)
    if image.mode not in ("RGB", "RGBA"):
        raise BadRecordError(
            path, f"a panoptic PNG has RGB pixels (id = R + 256 G + 65536 B), this one has mode {image.mode}"
        )
    return rgb_to_id(np.asarray(image)[:, :, :3])


def read_label_map(path: str) -> np.ndarray:
    """Read a label map: 8-bit gray or palette, or 16 bits for more than 255 classes (PNG, TIFF).

    Returns:
        int32 (H, W), the unchanged values of the file.

    Raises:
        BadRecordError: the file is missing, truncated, has several channels, or its values are not integers.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "I", "1") and not image.mode.startswith("I;16"):
        raise BadRecordError(
            path, f"a label map has one channel of 8 or 16 bits with class indices, this one is {image.mode}"
        )
    return np.asarray(image).astype(np.int32)


def check_image_size(record: dict[str, Any], size: tuple[int, int], path: str) -> None:
    """Check that an image has the size that its record says, and set the size if the record has none.

    Args:
        record: changed in place: "height" and "width" are set when absent.
        size: height and width of the image in pixels.
        path: image file, for the message.

    Raises:
        BadRecordError: the sizes differ.
    """
    height, width = size
    expected = (record.setdefault("height", height), record.setdefault("width", width))
    if expected != size:
        hint = "; width and height are swapped, check the EXIF orientation" if expected == (width, height) else ""
        raise BadRecordError(
            path,
            f"the image is {width}x{height} pixels (width x height), its record says {expected[1]}x{expected[0]}{hint}",
        )


def _open(path: str) -> Image.Image:
    """Open and decode an image; any exception of Pillow's plug-ins on a broken file becomes a BadRecordError."""
    if not isinstance(path, str) or not path:
        raise BadRecordError(str(path), "the record has no valid file name")
    try:
        with open_path(path) if "://" in path else open_regular(path) as file:
            image = open_with_pillow(file)
            pages = page_count(image)
            image.load()
    except (MemoryError, BadRecordError):
        raise
    except FileNotFoundError as error:
        raise BadRecordError(path, "the file does not exist") from error
    except Exception as error:
        raise BadRecordError(path, f"cannot be read as an image: {error}") from error
    if pages > 1:
        raise BadRecordError(path, f"has {pages} pages, but ground truth has one; save each page as a file of its own")
    return image
