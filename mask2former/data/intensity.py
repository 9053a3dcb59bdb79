"""Random gamma, brightness, inversion, gray, blur and noise: what exposures and cameras of microscopes differ in."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T

from .transforms import PixelTransform

_GRAY = np.full((3, 3), 1 / 3, np.float32)


class IntensityTransform(PixelTransform):
    """Gray, then gamma, brightness and inversion, blur, noise.

    Gamma and noise are relative to the brightest pixel of the image: dim images, whose objects have a few gray levels,
    keep them.

    Args:
        gray: replace the channels by their mean.
        exponent: of the levels, as shares of the largest one; 1 changes nothing.
        factor: of the levels, which end at 255.
        inverted: 255 minus the levels.
        blur: standard deviation of a Gaussian in pixels; 0 for none.
        noise: standard deviation as a share of the largest level, the same noise in all channels; 0 for none.
        seed: of the noise.
    """

    def __init__(
        self,
        gray: bool = False,
        exponent: float = 1.0,
        factor: float = 1.0,
        inverted: bool = False,
        blur: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.gray, self.exponent, self.factor, self.inverted = gray, exponent, factor, inverted
        self.blur, self.noise, self.seed = blur, noise, seed

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change the levels of a uint8 (H, W, 3) image."""
        if not img.size:
            return img
        img = np.ascontiguousarray(img)
        if self.gray:
            img = cv2.transform(img, _GRAY)
        if self.inverted or self.exponent != 1 or self.factor != 1:
            img = cv2.LUT(img, self._table(max(int(img.max()), 1)))
        if self.blur > 0:
            img = cv2.GaussianBlur(img, (0, 0), self.blur)
        if self.noise > 0:
            spread = np.float32(self.noise * int(img.max()))
            noise = np.random.default_rng(self.seed).standard_normal((*img.shape[:2], 1), np.float32) * spread
            img = np.clip(np.rint(img + noise), 0, 255).astype(np.uint8)
        return img

    def _table(self, largest: int) -> np.ndarray:
        shares = np.arange(256) / largest
        levels = np.clip(np.rint(shares**self.exponent * (largest * self.factor)), 0, 255)
        return (255 - levels if self.inverted else levels).astype(np.uint8)


class RandomIntensity(T.Augmentation):
    """Random gamma, brightness, inversion, gray, blur and noise. The defaults change nothing.

    Args:
        gamma: largest exponent of the levels, at least 1; the smallest is its reciprocal.
        brightness: largest factor of the levels, at least 1; the smallest is its reciprocal.
        invert: probability that light becomes dark: fluorescence looks like stained tissue, and the reverse.
        gray: probability that the colors go.
        blur: largest standard deviation of a Gaussian blur, in pixels of the image file. Half of the images get one.
        noise: largest standard deviation of noise, as a share of the brightest pixel. Half of the images get some.
    """

    reads_only_size = True

    def __init__(
        self,
        gamma: float = 1.0,
        brightness: float = 1.0,
        invert: float = 0.0,
        gray: float = 0.0,
        blur: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a change."""
        exponent, factor = self.gamma ** np.random.uniform(-1, 1), self.brightness ** np.random.uniform(-1, 1)
        inverted, gray, blurred, noisy = np.random.random(4) < (self.invert, self.gray, 0.5, 0.5)
        blur, noise = blurred * self.blur * np.random.random(), noisy * self.noise * np.random.random()
        seed = int(np.random.randint(2**31))
        if not (inverted or gray or blur or noise or exponent != 1 or factor != 1):
            return T.NoOpTransform()
        return IntensityTransform(bool(gray), exponent, factor, bool(inverted), float(blur), float(noise), seed)
