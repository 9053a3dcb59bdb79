"""Resized images with Pillow's pixels: complete, or a part of one alone, since a crop needs few pixels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image

from .. import ops

assert ops  # loads the compiled kernels


def resizes_windows(transform: T.Transform, pixels: np.ndarray) -> bool:
    """Return whether `resize_window` gives the result of a transform of an image: a bilinear resize, not lower.

    False without compiled kernels.
    """
    return (
        type(transform) is T.ResizeTransform
        and transform.interp == Image.Resampling.BILINEAR
        and pixels.dtype == np.uint8
        and pixels.ndim == 3
        and pixels.shape == (transform.h, transform.w, 3)
        and transform.new_h >= transform.h > 0
        and min(transform.new_w, transform.w) > 0
        and hasattr(torch.ops.mask2former, "resize_window")
    )


def resize_image(pixels: np.ndarray, transform: T.Transform, pinned: bool = False) -> torch.Tensor:
    """Apply a transform, usually a resize, to an image.

    Args:
        pixels: uint8 (h, w, 3), of any strides.
        transform: of the image.
        pinned: write the result into pinned memory where no other memory is written; for a copy to a GPU.

    Returns:
        uint8 (3, H, W), perhaps a view of `pixels`, of any strides; the same pixels as `transform.apply_image` gives.
    """
    same = type(transform) is T.ResizeTransform and (transform.new_h, transform.new_w) == pixels.shape[:2]
    if not same and resizes_windows(transform, pixels):
        size = transform.new_h, transform.new_w
        planes = torch.empty(3, *size, dtype=torch.uint8, pin_memory=pinned)
        resize_window(pixels, size, (0, 0), planes)
        return planes
    resized = pixels if same else transform.apply_image(pixels)
    return torch.from_numpy(np.require(resized, requirements=("C", "W"))).permute(2, 0, 1)


def resize_images(
    images: Sequence[np.ndarray], transforms: Sequence[T.Transform], pinned: bool = False
) -> list[torch.Tensor]:
    """Apply `resize_image` to several images at once, in as many threads as PyTorch uses (`torch.set_num_threads`).

    Args:
        images: uint8 (h, w, 3) each, of any strides.
        transforms: of each image.
        pinned: results are in pinned memory, whether or not there is something to resize.

    Returns:
        As `resize_image`, of each image.
    """

    def resized(pixels: np.ndarray, transform: T.Transform) -> torch.Tensor:
        image = resize_image(pixels, transform, pinned)
        return image.pin_memory() if pinned else image

    threads = min(len(images), torch.get_num_threads())
    if threads < 2:
        return [resized(*pair) for pair in zip(images, transforms, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(resized, images, transforms))


def resize_window(pixels: np.ndarray, size: tuple[int, int], origin: tuple[int, int], out: torch.Tensor) -> None:
    """Resize an image as Pillow does (bilinear), and write the pixels of a window of the result.

    Args:
        pixels: uint8 (h, w, 3), of any strides.
        size: height and width of the complete result; the height is at least h.
        origin: row and column of the result where the window begins.
        out: receives the window, uint8 (3, H, W); contiguous in its rows.
    """
    backwards = [stride < 0 for stride in pixels.strides]  # torch takes no negative strides
    base = pixels[tuple(slice(None, None, -1) if flag else slice(None) for flag in backwards)]
    if not base.flags.writeable:  # torch warns of them
        base = base.copy()
    torch.ops.mask2former.resize_window(torch.from_numpy(base), backwards, list(size), list(origin), out)
