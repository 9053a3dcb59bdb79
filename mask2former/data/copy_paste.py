"""Copy-paste of objects with their masks (Ghiasi et al., CVPR 2021), and images without objects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ..structures.masks import EMPTY_PATCH, Patch, clip_patch, tighten

_LEAST_VISIBLE = 0.1  # of its area; what is left of an object that others hide more is noise


@dataclass
class Scene:
    """An image and its objects.

    Attributes:
        pixels: uint8 (H, W, 3).
        classes: class indices of N objects.
        patches: their masks, N.
    """

    pixels: np.ndarray
    classes: list[int]
    patches: list[Patch]


def paste_objects(scene: Scene, source: Scene, most: int, scale: tuple[float, float]) -> Scene:
    """Copy objects of `source` to random places of `scene`, flipped, turned by 90 degrees and scaled at random.

    Objects of `scene` lose what the new ones hide, and go where less than a tenth of them remains; so do those that are
    pasted first. Objects that touch the border of `source`, which may cut them, are not copied. Numbers come from
    NumPy's global state.

    Args:
        scene: not changed.
        source: may be `scene` itself.
        most: largest number of objects, at least 1; how many is drawn. An object may be drawn several times.
        scale: smallest and largest factor of an object's size.

    Returns:
        A new scene; `scene` where there is nothing to copy.
    """
    usable = [index for index, patch in enumerate(source.patches) if _is_complete(patch, source.pixels.shape)]
    height, width = scene.pixels.shape[:2]
    if not usable or not height * width:
        return scene
    pixels, classes = scene.pixels.copy(), list(scene.classes)
    patches, areas = list(scene.patches), [int(patch.bits.sum()) for patch in scene.patches]
    for _ in range(np.random.randint(1, most + 1)):
        index = usable[np.random.randint(len(usable))]
        content, bits = _varied(source, source.patches[index], scale)
        # The center lies inside the image.
        top = np.random.randint(height) - bits.shape[0] // 2
        left = np.random.randint(width) - bits.shape[1] // 2
        patch = tighten(clip_patch(Patch(top, left, bits), 0, height, 0, width))
        if not patch.bits.size:
            continue
        rows, columns = (
            slice(patch.top, patch.top + patch.bits.shape[0]),
            slice(patch.left, patch.left + patch.bits.shape[1]),
        )
        inside = content[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        pixels[rows, columns][patch.bits] = inside[patch.bits]
        patches = [_without(other, patch) for other in patches]
        patches.append(patch)
        areas.append(int(patch.bits.sum()))
        classes.append(source.classes[index])
    kept = [index for index, patch in enumerate(patches) if patch.bits.sum() >= max(1, _LEAST_VISIBLE * areas[index])]
    return Scene(pixels, [classes[index] for index in kept], [patches[index] for index in kept])


def _is_complete(patch: Patch, shape: tuple[int, ...]) -> bool:
    bottom, right = patch.top + patch.bits.shape[0], patch.left + patch.bits.shape[1]
    return bool(patch.bits.size) and min(patch.top, patch.left) > 0 and bottom < shape[0] and right < shape[1]


def _varied(source: Scene, patch: Patch, scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (h, w, 3) and mask bool (h, w) of an object, flipped, turned and scaled."""
    factor, turns, flipped = np.random.uniform(*scale), np.random.randint(4), np.random.randint(2)
    rows, columns = patch.bits.shape
    content = source.pixels[patch.top : patch.top + rows, patch.left : patch.left + columns]
    size = max(1, round(columns * factor)), max(1, round(rows * factor))
    content = cv2.resize(np.ascontiguousarray(content), size, interpolation=cv2.INTER_LINEAR)
    bits = cv2.resize(patch.bits.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    content, bits = np.rot90(content, turns), np.rot90(bits, turns)
    return (content[:, ::-1], bits[:, ::-1]) if flipped else (content, bits)


def _without(patch: Patch, hidden: Patch) -> Patch:
    """Return a mask without the pixels of another one."""
    top, left = max(patch.top, hidden.top), max(patch.left, hidden.left)
    bottom = min(patch.top + patch.bits.shape[0], hidden.top + hidden.bits.shape[0])
    right = min(patch.left + patch.bits.shape[1], hidden.left + hidden.bits.shape[1])
    if top >= bottom or left >= right:
        return patch
    bits = patch.bits.copy()
    covered = hidden.bits[top - hidden.top : bottom - hidden.top, left - hidden.left : right - hidden.left]
    bits[top - patch.top : bottom - patch.top, left - patch.left : right - patch.left] &= ~covered
    return tighten(Patch(patch.top, patch.left, bits)) if bits.any() else EMPTY_PATCH


EMPTY_KINDS = ("black", "white", "uniform", "gradient", "noise", "clouds")

_CLOUDS_SHARE = 0.5  # of random empty images; models take soft clouds for objects more often than the other kinds
_DARKEST_TISSUE = np.array([[150, 90, 150], [130, 95, 70]], np.float32)  # RGB of purple and of brown tissue
_LIGHTEST_TISSUE = np.array([[248, 225, 240], [245, 235, 220]], np.float32)


def random_empty_image(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw an image without objects of a random kind; half of them are "clouds".

    Args:
        size: height H and width W, at least 1.
        rng: source of random numbers.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    others = [kind for kind in EMPTY_KINDS if kind != "clouds"]
    kind = "clouds" if rng.random() < _CLOUDS_SHARE else others[rng.integers(len(others))]
    return empty_image(kind, size, rng)


def empty_image(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw an image without objects.

    Args:
        kind: one of `EMPTY_KINDS`: all levels 0; all 255; one color; a color that changes smoothly; noise on a color;
            soft clouds with weak noise, as backgrounds of tissue, phase contrast and defocused light.
        size: height H and width W, at least 1.
        rng: source of random numbers.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: another kind.
    """
    if kind not in EMPTY_KINDS:
        raise ValueError(f"{kind!r} is not one of {', '.join(EMPTY_KINDS)}")
    if kind in ("black", "white"):
        return np.full((*size, 3), 0 if kind == "black" else 255, np.uint8)
    if kind == "clouds":
        grain = rng.uniform(1, 4) if rng.random() < 0.5 else 1.0  # pixels; coarse noise is a faint texture
        sigma = rng.uniform(0, 6) / math.sqrt(grain)
        return _rounded(clouds(size, rng) + _on_channels(_noise(size, rng, grain) * np.float32(sigma)))
    # Half of the colors are dark, as fluorescence without objects is.
    brightest, channels = rng.choice([30, 255]), rng.choice([1, 3])
    levels = np.broadcast_to(rng.uniform(0, brightest, channels), (3,)).astype(np.float32)
    image = np.broadcast_to(levels, (*size, 3))
    if kind == "gradient":
        corners = rng.uniform(-60, 60, (2, 2)).astype(np.float32)
        image = image + cv2.resize(corners, size[::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    if kind == "noise":
        image = image + _on_channels(_noise(size, rng) * np.float32(rng.uniform(1, 30)))
    return _rounded(image)


def clouds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw smooth random levels: octaves of noise, each with half the amplitude of the coarser one, on a color.

    The amplitude is 2 to 40 levels, and small ones are as common as large ones. Structures are wider than about a
    twelfth of the image, so that none has the size or the edge of a small object. Half of the images are gray, the
    others have three channels that differ a little, or the color of purple or brown tissue; some get darker to the
    border.

    Args:
        size: height H and width W, at least 1.
        rng: source of random numbers.

    Returns:
        float32 (H, W, 3), RGB; some levels may be below 0 or above 255.
    """
    small = math.ceil(size[0] / 4), math.ceil(size[1] / 4)  # smooth, so that a quarter of the size is enough
    field, cells, weight = np.zeros(small, np.float32), rng.uniform(1, 4), 1.0
    while cells <= 12:
        grid = [max(2, round(edge * cells / max(size)) + 1) for edge in size]
        noise = rng.standard_normal(grid, np.float32) * np.float32(weight)
        field += cv2.resize(noise, small[::-1], interpolation=cv2.INTER_CUBIC)
        cells, weight = 2 * cells, weight / 2
    field *= np.float32(np.exp(rng.uniform(np.log(2), np.log(40)))) / max(np.abs(field).max(), np.float32(1e-6))
    enlarged = cv2.resize(field, size[::-1], interpolation=cv2.INTER_CUBIC)
    levels, gains = _background(rng)
    light = _vignette(size, rng) if rng.random() < 0.4 else np.float32(1)
    # Channel by channel: NumPy is several times slower where three channels are the last axis.
    return cv2.merge([(enlarged * gain + level) * light for level, gain in zip(levels, gains, strict=True)])


def _background(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a color and how much each channel of it varies, both float32 (3,)."""
    tint = rng.random()
    if tint < 0.25:
        stain, lightness = rng.integers(2), rng.uniform(0, 1, 1) + rng.uniform(-0.1, 0.1, 3)
        levels = _DARKEST_TISSUE[stain] * (1 - lightness) + _LIGHTEST_TISSUE[stain] * lightness
    else:
        # Half are dark, as fluorescence without objects is.
        levels = np.full(3, rng.uniform(0, rng.choice([40, 255])))
    if tint >= 0.5:  # gray
        return levels.astype(np.float32), np.ones(3, np.float32)
    levels = levels + rng.uniform(-6, 6, 3)
    return levels.astype(np.float32), rng.uniform(0.6, 1.4, 3).astype(np.float32)


def _vignette(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return factors of light, float32 (H, W), that fall from 1 near the center to 0.9 to 0.5 in a corner."""
    rows, columns = (
        (np.linspace(-1, 1, edge, dtype=np.float32) - np.float32(rng.uniform(-0.3, 0.3))) ** 2 for edge in size
    )
    strength = rng.uniform(0.1, 0.5) / max(rows.max() + columns.max(), 1e-6)
    return 1 - np.float32(strength) * (rows[:, None] + columns)


def _noise(size: tuple[int, int], rng: np.random.Generator, grain: float = 1.0) -> np.ndarray:
    """Return normal noise, float32 (H, W), of deviation 1 at the points of a grid of `grain` pixels, smooth between."""
    noise = rng.standard_normal([math.ceil(edge / grain) for edge in size], np.float32)
    return noise if noise.shape == size else cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def _on_channels(levels: np.ndarray) -> np.ndarray:
    """Return the same levels (H, W) for all channels, (H, W, 3)."""
    return cv2.merge([levels] * 3)


def _rounded(image: np.ndarray) -> np.ndarray:
    """Return levels as uint8, rounded to even and limited to 0 to 255."""
    return cv2.convertScaleAbs(np.maximum(image, 0))  # four times as fast as NumPy's functions
