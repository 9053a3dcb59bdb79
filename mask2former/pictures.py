"""Any picture that the Python API accepts, as one array."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image, ImageOps

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor


def read_picture(picture: Picture) -> np.ndarray:
    """Any accepted picture as (H, W, 3) uint8 RGB; see `Segmenter.__call__` for what is accepted.

    16-bit values are divided by 257 and alpha is dropped, as `data.images.read_image` does for training.

    Raises:
        FileNotFoundError, ValueError: as `Segmenter.__call__`.
    """
    from mask2former.data import images

    if isinstance(picture, str | os.PathLike):
        path = os.fspath(picture)
        if "://" not in path and not os.path.isfile(path):
            what = "is a folder; give the pictures in it" if os.path.isdir(path) else "does not exist"
            raise FileNotFoundError(f"picture {path!r} {what}")
        return images.read_image(path)
    if isinstance(picture, Image.Image):
        return images.to_rgb("this PIL image", ImageOps.exif_transpose(picture))
    if isinstance(picture, torch.Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise ValueError(
                f"a tensor must be uint8 (3, H, W) RGB, not {picture.dtype} {tuple(picture.shape)}; "
                "give a batch as a list of tensors"
            )
        return _not_empty(np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()))
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    raise ValueError(f"a picture is a path, PIL image, numpy array or tensor, not {type(picture).__name__}")


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"an array must be uint8 (or uint16), not {array.dtype}; "
            "from values in [0, 1]: (array * 255).astype('uint8')"
        )
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"an array must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}; give a batch as a list"
        )
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return _not_empty(
        np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3])
    )


def _not_empty(array: np.ndarray) -> np.ndarray:
    if not array.size:
        raise ValueError(f"the picture has no pixels: (H, W, 3) is {array.shape}")
    return array
