"""An image whose transforms are applied when its pixels are needed, and then together.

detectron2 transforms the complete image after every augmentation, though most augmentations read only its size.
Large-scale jitter, for example, enlarges an image to three million pixels and keeps one. Here the resize waits for the
crop and the padding, and computes what they keep. The result is equal pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform

from .mask_transforms import flatten
from .transforms import (
    ColorAugSSD,
    PadToSquare,
    PixelTransform,
    RandomRot90,
    ResizeScale,
    ResizeShortestEdge,
    Rot90Transform,
)
from .window_resize import resize_window, resizes_windows

# Augmentations that draw their transform without a look at the pixels; subclasses may look.
_READ_ONLY_THE_SIZE = {
    T.FixedSizeCrop,
    T.RandomCrop,
    T.RandomCrop_CategoryAreaConstraint,
    T.RandomFlip,
    T.Resize,
    T.ResizeScale,
    T.ResizeShortestEdge,
    ColorAugSSD,
    PadToSquare,
    RandomRot90,
    ResizeScale,
    ResizeShortestEdge,
    type(T.AugmentationList([T.NoOpTransform()]).augs[0]),  # a transform among augmentations
}
_KEEP_THE_SIZE = {T.NoOpTransform, T.BlendTransform, T.HFlipTransform, T.VFlipTransform}

Size = tuple[int, int]


def reads_only_size(augmentation: T.Augmentation) -> bool:
    """Return whether an augmentation draws its transform without a look at the pixels.

    Other augmentations say so with an attribute `reads_only_size`.
    """
    return type(augmentation) in _READ_ONLY_THE_SIZE or getattr(augmentation, "reads_only_size", False) is True


class DeferredInput(T.AugInput):
    """The input of augmentations. Reading `image` applies the transforms so far; `pixels()` returns the final result.

    Label maps and boxes are transformed at once.

    Args:
        image: uint8 (H, W, 3).
        sem_seg: label map (H, W), or None.
    """

    sem_seg: np.ndarray | None
    boxes: np.ndarray | None

    def __init__(self, image: np.ndarray, *, sem_seg: np.ndarray | None = None) -> None:
        self._waiting: list[T.Transform] = []
        self._only_size = False
        super().__init__(image, sem_seg=sem_seg)

    @property
    def image(self) -> np.ndarray:
        """Return the image after all transforms so far, (H, W, 3)."""
        if self._only_size:
            return np.broadcast_to(np.uint8(0), (*self._size, 3))
        if self._waiting:
            self.image = np.ascontiguousarray(self.pixels())
        return self._image

    @image.setter
    def image(self, image: np.ndarray) -> None:
        self._image = image
        self._size: Size = image.shape[0], image.shape[1]
        self._waiting = []

    def transform(self, tfm: T.Transform) -> None:
        """Apply a transform to the label map and the boxes; to the image now or later."""
        for part in flatten(T.TransformList([tfm])):
            size = _size_after(part, self._size) if self._image.ndim == 3 else None
            if size is None:
                with self._with_pixels():
                    self.image = part.apply_image(self.image)
            else:
                self._waiting.append(part)
                self._size = size
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)

    def augment(self, augmentation: T.Augmentation) -> T.Transform:
        """Apply an augmentation; return its transform."""
        if type(augmentation) is T.AugmentationList:
            return T.TransformList([self.augment(each) for each in augmentation.augs])
        if not reads_only_size(augmentation):
            return augmentation(self)
        self._only_size = True
        try:
            return augmentation(self)
        finally:
            self._only_size = False

    def pixels(self) -> np.ndarray:
        """Return the image after all transforms, uint8 (H, W, 3), of any strides and perhaps read-only."""
        return _apply(self._image, self._waiting)

    @contextmanager
    def _with_pixels(self) -> Iterator[None]:
        before, self._only_size = self._only_size, False
        try:
            yield
        finally:
            self._only_size = before


def _size_after(transform: T.Transform, size: Size) -> Size | None:
    """Return the size after a transform; None if its type is not known, subclasses included."""
    height, width = size
    kind = type(transform)
    if kind in _KEEP_THE_SIZE or isinstance(transform, PixelTransform):
        return size
    if kind is Rot90Transform:
        return size if transform.turns % 2 == 0 else (width, height)
    if kind is T.ResizeTransform:
        return transform.new_h, transform.new_w
    if kind is T.CropTransform:
        return len(_rows(transform, height)), len(_columns(transform, width))
    if kind is PadTransform:
        return transform.y0 + height + transform.y1, transform.x0 + width + transform.x1
    return None


def _rows(crop: T.CropTransform, height: int) -> range:
    return range(height)[crop.y0 : crop.y0 + crop.h]


def _columns(crop: T.CropTransform, width: int) -> range:
    return range(width)[crop.x0 : crop.x0 + crop.w]


def _apply(image: np.ndarray, transforms: Sequence[T.Transform]) -> np.ndarray:
    """Apply transforms to an image; an enlargement with the crops and the padding behind it, padding in one copy."""
    waiting = [transform for transform in transforms if type(transform) is not T.NoOpTransform]
    while waiting:
        transform = waiting.pop(0)
        if resizes_windows(transform, image):
            rows, columns = range(transform.new_h), range(transform.new_w)
            while waiting and type(waiting[0]) is T.CropTransform:
                crop = waiting.pop(0)
                rows, columns = rows[crop.y0 : crop.y0 + crop.h], columns[crop.x0 : crop.x0 + crop.w]
            pad = waiting.pop(0) if waiting and type(waiting[0]) is PadTransform else None
            planes, inner = _padded((len(rows), len(columns)), pad)
            if rows and columns:
                size = transform.new_h, transform.new_w
                resize_window(image, size, (rows[0], columns[0]), inner)
            image = _as_image(planes)
        elif type(transform) is PadTransform and image.dtype == np.uint8:
            planes, inner = _padded((image.shape[0], image.shape[1]), transform)
            inner.numpy()[...] = image.transpose(2, 0, 1)
            image = _as_image(planes)
        else:
            image = transform.apply_image(image)
    return image


def _padded(size: Size, pad: PadTransform | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return new planes with their padding, uint8 (3, H, W), and the part of them that is to be filled, a view."""
    top, left, bottom, right = (pad.y0, pad.x0, pad.y1, pad.x1) if pad is not None else (0, 0, 0, 0)
    planes = torch.zeros((3, top + size[0] + bottom, left + size[1] + right), dtype=torch.uint8)
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    if pad is not None:
        values = planes.numpy()
        values[:, :top] = values[:, rows.stop :] = pad.pad_value
        values[:, rows, :left] = values[:, rows, columns.stop :] = pad.pad_value
    return planes, planes[:, rows, columns]


def _as_image(planes: torch.Tensor) -> np.ndarray:
    return planes.numpy().transpose(1, 2, 0)
