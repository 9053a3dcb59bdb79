"""Read images of any common format as 8-bit color, label maps and panoptic PNG files; one error if they are broken."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from ..errors import BadRecordError
from ..structures.panoptic_ids import rgb_to_id

logger = logging.getLogger(__name__)

IMAGE_FORMATS = ("RGB", "BGR")

# Endings of file names, compared in lower case.
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LABEL_MAP_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff"})  # lossless, with one channel
WRITABLE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})  # true color


def read_image(path: str, image_format: str = "RGB") -> np.ndarray:
    """Read an image file as 8-bit color.

    Gray, palette, CMYK and bilevel images are converted to color, alpha is dropped, the EXIF orientation is applied.
    16-bit gray is divided by 257, so that 65535 becomes 255 and every image of a dataset is scaled alike; rescale the
    values beforehand if they use only a part of the 16 bits. Of a file with several frames the first is read.

    Args:
        path: file name, or any URL that iopath's PathManager supports.
        image_format: order of the channels, "RGB" or "BGR".

    Returns:
        uint8 (H, W, 3) in [0, 255].

    Raises:
        BadRecordError: the file is missing, truncated or not an image, or its values have no fixed range.
        ValueError: unknown `image_format`.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT is {image_format!r}, use one of {', '.join(IMAGE_FORMATS)}")
    image = _open(path)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # a broken EXIF block must not make the image unusable
        logger.debug("%s: EXIF orientation ignored: %s", path, error)
    pixels = to_rgb(path, image)
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


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
            path, f"a panoptic PNG has RGB pixels (id = R + 256 G + 65536 B), this one is {image.mode}"
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
        with PathManager.open(path, "rb") as file:
            image = Image.open(file)
            image.load()
            return image
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise BadRecordError(path, "the file does not exist") from error
    except Exception as error:
        raise BadRecordError(path, f"cannot be read as an image: {error}") from error


def to_rgb(path: str, image: Image.Image) -> np.ndarray:
    """Convert a PIL image to uint8 (H, W, 3) RGB.

    Args:
        path: name of the image, for messages.
        image: of any mode.

    Raises:
        BadRecordError: floating point values, more than 16 bits a pixel, or a mode that Pillow cannot convert.
    """
    if image.mode == "F":
        raise BadRecordError(
            path, "floating point values have no fixed range; save the image with 8 or 16 bits per channel"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.int64)
        if gray.size and (gray.min() < 0 or gray.max() > 65535):
            raise BadRecordError(path, "values need more than 16 bits; save the image with 8 or 16 bits per channel")
        gray8 = ((gray + 128) // 257).astype(np.uint8)
        return np.repeat(gray8[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion to RGB
    try:
        # Copy: Pillow's buffer is read-only, and PyTorch warns when a tensor is made of a read-only array.
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise BadRecordError(path, f"pixels of mode {image.mode} cannot be converted to RGB") from error


ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor


def load_image(source: ImageSource) -> np.ndarray:
    """Load an image from any accepted source as uint8 (H, W, 3) RGB; `Segmenter.__call__` lists the sources.

    16-bit values are divided by 257 and alpha is dropped, as `read_image` does for training.

    Raises:
        FileNotFoundError, ValueError: as `Segmenter.__call__`.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if "://" not in path and not os.path.isfile(path):
            reason = "is a directory; pass the images in it" if os.path.isdir(path) else "does not exist"
            raise FileNotFoundError(f"image {path!r} {reason}")
        return read_image(path)
    if isinstance(source, Image.Image):
        return to_rgb("this PIL image", ImageOps.exif_transpose(source))
    if isinstance(source, torch.Tensor):
        if source.dtype != torch.uint8 or source.ndim != 3 or source.shape[0] != 3:
            raise ValueError(
                f"a tensor must be uint8 (3, H, W) RGB, not {source.dtype} {tuple(source.shape)}; "
                "pass a batch as a list of tensors"
            )
        return _not_empty(np.ascontiguousarray(source.permute(1, 2, 0).cpu().numpy()))
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ValueError(f"an image is a path, PIL image, numpy array or tensor, not {type(source).__name__}")


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"an array must be uint8 (or uint16), not {array.dtype}; "
            "from values in [0, 1]: (array * 255).astype('uint8')"
        )
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"an array must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}; pass a batch as a list")
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return _not_empty(np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]))


def _not_empty(array: np.ndarray) -> np.ndarray:
    if not array.size:
        raise ValueError(f"the image has no pixels: its shape (H, W, 3) is {array.shape}")
    return array
