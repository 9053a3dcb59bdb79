"""Augmentations that detectron2 lacks, and fixes of two that it has.

All draw their random numbers in `get_transform` and return a deterministic transform.
"""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform
from PIL import Image

IMAGE_PAD_VALUE = 128  # gray, as in the training of the published models


class PixelTransform(T.Transform):
    """Base of transforms that change the values of pixels only: size, points and labels stay.

    Masks and deferred images rely on that, subclasses of other projects included. Implement `apply_image`.
    """

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the labels unchanged."""
        return segmentation

    def inverse(self) -> T.Transform:
        """Return a transform that changes nothing: points and labels are as before."""
        return T.NoOpTransform()


class ColorTransform(PixelTransform):
    """A change of colors by lookup tables.

    Steps are applied in order: ("rgb", table uint8 (256,)) to every channel, ("hsv", tables uint8 (3, 256)) to hue,
    saturation and value, hue in [0, 255].
    """

    def __init__(self, steps: list[tuple[str, np.ndarray]], image_format: str = "RGB") -> None:
        super().__init__()
        self.steps = steps
        self.image_format = image_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change the colors of a uint8 (H, W, 3) image."""
        for space, table in self.steps:
            if space == "rgb":
                img = cv2.LUT(np.ascontiguousarray(img), table)
                continue
            rgb = img[:, :, ::-1] if self.image_format == "BGR" else img
            image = Image.fromarray(np.ascontiguousarray(rgb)).convert("HSV")
            img = np.asarray(image.point(table.reshape(-1).tolist()).convert("RGB"))
            img = img[:, :, ::-1] if self.image_format == "BGR" else img
        return img


class ColorAugSSD(T.Augmentation):
    """Photometric distortion (SSD, Liu et al., ECCV 2016, section 2.2, after Howard, arXiv:1312.5402).

    Changes brightness, contrast, saturation and hue, each with probability one half; contrast comes before or after
    saturation and hue, with equal probability.

    Args:
        image_format: order of the channels, "RGB" or "BGR".
        brightness: largest shift, in gray levels of [0, 255].
        contrast: range of the factor.
        saturation: range of the factor.
        hue: largest rotation of the hue in degrees.
    """

    def __init__(
        self,
        image_format: str = "RGB",
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 36.0,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a distortion."""
        levels = np.arange(256, dtype=np.float64)
        steps: list[tuple[str, np.ndarray]] = []
        if random.random() < 0.5:
            steps.append(("rgb", _table(levels + random.uniform(-self.brightness, self.brightness))))
        contrast_first = random.random() < 0.5
        contrast = None
        if random.random() < 0.5:
            contrast = ("rgb", _table(levels * random.uniform(*self.contrast)))
        hsv = np.stack([levels, levels, levels])
        if random.random() < 0.5:
            hsv[1] *= random.uniform(*self.saturation)
        if random.random() < 0.5:
            hsv[0] = (hsv[0] + random.uniform(-self.hue, self.hue) * 256 / 360) % 256
        tables = _table(hsv)
        if contrast and contrast_first:
            steps.append(contrast)
        if (tables != levels).any():
            steps.append(("hsv", tables))
        if contrast and not contrast_first:
            steps.append(contrast)
        return ColorTransform(steps, self.image_format) if steps else T.NoOpTransform()


class Rot90Transform(T.Transform):
    """Rotation by a multiple of 90 degrees, counterclockwise.

    Args:
        height, width: size of the image before the rotation.
        turns: number of rotations by 90 degrees.
    """

    def __init__(self, height: int, width: int, turns: int) -> None:
        super().__init__()
        self.height, self.width, self.turns = height, width, turns % 4

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Rotate an image (H, W) or (H, W, C)."""
        return np.rot90(img, self.turns)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate points (P, 2), (x, y) in pixels."""
        height, width = self.height, self.width
        for _ in range(self.turns):
            coords = np.stack([coords[:, 1], width - coords[:, 0]], axis=1)
            height, width = width, height
        return coords

    def inverse(self) -> T.Transform:
        """Return the rotation back."""
        height, width = (self.width, self.height) if self.turns % 2 else (self.height, self.width)
        return Rot90Transform(height, width, -self.turns)


class RandomRot90(T.Augmentation):
    """Rotation by 0, 90, 180 or 270 degrees with equal probability, for images without a natural orientation."""

    def __init__(self) -> None:
        """Without arguments; detectron2 makes the text of the log from this signature."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a rotation."""
        turns = np.random.randint(4)
        return Rot90Transform(image.shape[0], image.shape[1], turns) if turns else T.NoOpTransform()


class ResizeScale(T.ResizeScale):
    """detectron2's ResizeScale, but a very long image keeps at least one pixel on its shortest edge."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a size."""
        return _at_least_one_pixel(super().get_transform(image))


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's ResizeShortestEdge, but a very long image keeps at least one pixel on its shortest edge."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a size."""
        return _at_least_one_pixel(super().get_transform(image))


class PadToSquare(T.Augmentation):
    """Padding at right and bottom to a square; the image is padded with gray 128. Longer edges are not cropped.

    Args:
        side: edge of the square in pixels.
        label_value: padding value of masks and label maps.
    """

    def __init__(self, side: int, label_value: int = 0) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the padding of an image."""
        height, width = image.shape[:2]
        right, bottom = max(0, self.side - width), max(0, self.side - height)
        if not right and not bottom:
            return T.NoOpTransform()
        return PadTransform(0, 0, right, bottom, width, height, IMAGE_PAD_VALUE, self.label_value)


def flip_augmentations(mode: str) -> list[T.Augmentation]:
    """Build the flip for a value of INPUT.RANDOM_FLIP: "horizontal", "vertical" or "none".

    Raises:
        ValueError: any other value.
    """
    if mode == "none":
        return []
    if mode not in ("horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is {mode!r}, use 'horizontal', 'vertical' or 'none'")
    return [T.RandomFlip(horizontal=mode == "horizontal", vertical=mode == "vertical")]


def _table(levels: np.ndarray) -> np.ndarray:
    # Truncates as a conversion to 8 bits does, and does not round; hue was wrapped before.
    return np.clip(levels, 0, 255).astype(np.uint8)


def _at_least_one_pixel(transform: Any) -> T.Transform:
    if isinstance(transform, T.ResizeTransform) and min(transform.new_h, transform.new_w) < 1:
        height, width = max(1, transform.new_h), max(1, transform.new_w)
        return T.ResizeTransform(transform.h, transform.w, height, width, transform.interp)
    return transform
