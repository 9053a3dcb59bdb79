"""Reading images of any common kind as 8-bit color, with one clear error when that is impossible."""

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
LABEL_MAP_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff"})  # without loss, and one channel
WRITABLE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})  # true color


def read_image(path: str, image_format: str = "RGB") -> np.ndarray:
    """Read an image as color.

    Gray, palette, CMYK and bilevel images become color, alpha is dropped, the EXIF orientation is applied.
    16-bit gray is divided by 257, so that 65535 becomes 255 and every image of a dataset is scaled alike;
    stretch the values yourself where only a part of the 16 bits is used. Of files with several frames the
    first is read.

    Args:
        path: file name or any address that iopath's PathManager knows.
        image_format: order of the channels, "RGB" or "BGR".

    Returns:
        uint8 (H, W, 3) in [0, 255].

    Raises:
        BadRecordError: the file is missing, truncated, no image, or its values cannot be scaled safely.
        ValueError: unknown `image_format`.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT is {image_format!r}, use one of {', '.join(IMAGE_FORMATS)}")
    image = _open(path)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # orientation is a hint: a broken EXIF block must not cost the image
        logger.debug("%s: EXIF orientation ignored: %s", path, error)
    pixels = to_rgb(path, image)
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def read_panoptic_png(path: str) -> np.ndarray:
    """Read segment ids from a PNG in the COCO panoptic format, id = R + 256 G + 65536 B.

    Returns:
        int32 (H, W), 0 where no segment is.

    Raises:
        BadRecordError: the file is missing, truncated or not an RGB image.
    """
    image = _open(path)
    if image.mode not in ("RGB", "RGBA"):
        raise BadRecordError(path, f"a panoptic PNG has RGB pixels (id = R + 256 G + 65536 B), this is {image.mode}")
    return rgb_to_id(np.asarray(image)[:, :, :3])


def read_label_map(path: str) -> np.ndarray:
    """Read a label map: 8-bit gray or palette, or 16 bits for more than 255 classes (PNG, TIFF).

    Returns:
        int32 (H, W), the values of the file as they are.

    Raises:
        BadRecordError: the file is missing, truncated, or has several channels or no integers.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "I", "1") and not image.mode.startswith("I;16"):
        raise BadRecordError(
            path, f"a label map has one channel of 8 or 16 bits whose value is the class, this is {image.mode}"
        )
    return np.asarray(image).astype(np.int32)


def check_image_size(record: dict[str, Any], size: tuple[int, int], path: str) -> None:
    """Compare the size of an image with its record and add a size that the record lacks.

    Args:
        record: changed in place: "height" and "width" are set when absent.
        size: height and width of the image in pixels.
        path: file of the image, for the message.

    Raises:
        BadRecordError: the sizes differ.
    """
    height, width = size
    expected = (record.setdefault("height", height), record.setdefault("width", width))
    if expected != size:
        hint = "; the sides are swapped, see the EXIF orientation" if expected == (width, height) else ""
        raise BadRecordError(
            path,
            f"the image is {width}x{height} pixels (width x height), its record says {expected[1]}x{expected[0]}{hint}",
        )


def _open(path: str) -> Image.Image:
    """Open and decode; whatever kind of error Pillow's plug-ins raise on a broken file, it means the same."""
    if not isinstance(path, str) or not path:
        raise BadRecordError(str(path), "the record has no usable file name")
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
    if image.mode == "F":
        raise BadRecordError(path, "floating point images have no fixed range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.int64)
        if gray.size and (gray.min() < 0 or gray.max() > 65535):
            raise BadRecordError(path, "has more than 16 bits a pixel; save it with 8 or 16 bits")
        gray8 = ((gray + 128) // 257).astype(np.uint8)
        return np.repeat(gray8[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way to RGB
    try:
        # A copy: Pillow's own memory is read-only, of which PyTorch warns when a transform makes a tensor of it.
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise BadRecordError(path, f"pixels of mode {image.mode} cannot be turned into RGB") from error


ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor


def load_image(source: ImageSource) -> np.ndarray:
    """Any accepted image as (H, W, 3) uint8 RGB; see `Segmenter.__call__` for what is accepted.

    16-bit values are divided by 257 and alpha is dropped, as `data.images.read_image` does for training.

    Raises:
        FileNotFoundError, ValueError: as `Segmenter.__call__`.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if "://" not in path and not os.path.isfile(path):
            what = "is a directory; give the images in it" if os.path.isdir(path) else "does not exist"
            raise FileNotFoundError(f"image {path!r} {what}")
        return read_image(path)
    if isinstance(source, Image.Image):
        return to_rgb("this PIL image", ImageOps.exif_transpose(source))
    if isinstance(source, torch.Tensor):
        if source.dtype != torch.uint8 or source.ndim != 3 or source.shape[0] != 3:
            raise ValueError(
                f"a tensor must be uint8 (3, H, W) RGB, not {source.dtype} {tuple(source.shape)}; "
                "give a batch as a list of tensors"
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
        raise ValueError(f"an array must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}; give a batch as a list")
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return _not_empty(np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]))


def _not_empty(array: np.ndarray) -> np.ndarray:
    if not array.size:
        raise ValueError(f"the image has no pixels: (H, W, 3) is {array.shape}")
    return array
