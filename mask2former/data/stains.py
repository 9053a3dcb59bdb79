"""Stain augmentation of bright-field microscopy: other concentrations, other stains.

Light that passes stained tissue is absorbed: the optical density of a pixel, -log10 of its share of the light, is the
sum of the stains' concentrations times their colors (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001).
Tellez et al. (IEEE Trans. Med. Imaging 37, 2018) scale and shift the concentrations at random.
"""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T

from .transforms import PixelTransform

# Optical density of the stains in red, green and blue, as Ruifrok and Johnston measured them.
STAINS = {
    "hematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "dab": (0.27, 0.57, 0.78),
}
# Stain of the nuclei and stain of the rest. DAB is brown; it marks what an antibody binds, nuclei or anything else.
_PAIRS = (("hematoxylin", "eosin"), ("hematoxylin", "dab"), ("dab", "hematoxylin"))

_BRIGHT = 110.0  # gray levels; between the brightest fluorescence and the darkest tissue of the nuclei dataset
_COLORLESS = 4.0  # gray levels between the channels, of JPEG files too


def is_bright_field(image: np.ndarray) -> bool:
    """Return whether a uint8 image (H, W, 3) is mostly bright, as stained tissue is and fluorescence is not."""
    return bool(image.size) and float(image.mean()) > _BRIGHT


def is_colorless(image: np.ndarray) -> bool:
    """Return whether the channels of a uint8 image (H, W, 3) are the same but for a few gray levels."""
    if not image.size:
        return True
    first, second, third = cv2.split(np.ascontiguousarray(image))
    highest, lowest = cv2.max(cv2.max(first, second), third), cv2.min(cv2.min(first, second), third)
    return float(cv2.subtract(highest, lowest).mean()) < _COLORLESS


class StainTransform(PixelTransform):
    """An affine change of the optical densities of bright-field images; others, such as fluorescence, stay as they are.

    Args:
        matrix: (3, 3), new optical densities of red, green and blue from the old ones, for images with colors.
        shift: (3,), added to them.
        tint: (3,), optical density in red, green and blue that gray images get for each unit of theirs; None: gray
            images are changed as those with colors.
        image_format: order of the channels, "RGB" or "BGR".
    """

    def __init__(
        self, matrix: np.ndarray, shift: np.ndarray, tint: np.ndarray | None = None, image_format: str = "RGB"
    ) -> None:
        super().__init__()
        self.matrix, self.shift, self.tint, self.image_format = matrix, shift, tint, image_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change the stains of a uint8 (H, W, 3) image."""
        if not is_bright_field(img):
            return img
        matrix = self.matrix
        if self.tint is not None and is_colorless(img):
            matrix = np.outer(self.tint, np.full(3, 1 / 3))
        affine = np.concatenate([matrix, self.shift[:, None]], axis=1)
        if self.image_format == "BGR":
            affine = affine[::-1, [2, 1, 0, 3]]
        density = cv2.transform(cv2.LUT(np.ascontiguousarray(img), _DENSITIES), affine.astype(np.float32))
        # Densities below 0 are light that no stain lets through: the largest level.
        levels = np.exp(density * np.float32(-np.log(10))) * 256 - 1
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


class RandomStains(T.Augmentation):
    """Other stain concentrations, and sometimes other stains, in images of stained tissue.

    Concentrations are multiplied by a factor of [1 - strength, 1 + strength], and get a constant of up to a fifth of
    `strength` more or less, both drawn for each stain. With `swap` the stains get the colors of another pair
    (hematoxylin and eosin, hematoxylin and DAB, DAB and hematoxylin), turned a little, and gray images get the color of
    a nuclear stain.

    Args:
        prob: probability that an image is changed.
        strength: 0 to 1; 0 keeps the concentrations.
        swap: probability that a changed image gets other stains.
        image_format: order of the channels, "RGB" or "BGR".
    """

    reads_only_size = True

    def __init__(self, prob: float = 0.5, strength: float = 0.3, swap: float = 0.3, image_format: str = "RGB") -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the stains."""
        # As many numbers for every image, so that one option leaves the others as they are.
        chance, swapped, pair = np.random.random(), np.random.random(), np.random.randint(len(_PAIRS))
        factors = 1 + self.strength * np.random.uniform(-1, 1, 3)
        constants = 0.2 * self.strength * np.random.uniform(-1, 1, 3)
        turns = np.random.normal(0, 0.06, (3, 3))
        if chance >= self.prob:
            return T.NoOpTransform()
        source = target = stain_matrix(*_PAIRS[0])
        tint = None
        if swapped < self.swap:
            target = _unit_rows(np.maximum(stain_matrix(*_PAIRS[pair]) + turns, 0.01))
            tint = target[0] / target[0].mean() * factors[0]
        matrix = np.linalg.inv(source) @ np.diag(factors) @ target  # of densities in rows
        return StainTransform(matrix.T, constants @ target, tint, self.image_format)


def stain_matrix(first: str, second: str) -> np.ndarray:
    """Return the colors of two stains and of what neither explains, float (3, 3), unit rows in red, green, blue."""
    rows = _unit_rows(np.array([STAINS[first], STAINS[second]]))
    return np.stack([*rows, _unit_rows(np.cross(*rows)[None])[0]])


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


_DENSITIES = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
