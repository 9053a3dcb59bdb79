"""Copy-paste of objects with their masks (Ghiasi et al., CVPR 2021), and images without objects."""

from __future__ import annotations

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


EMPTY_KINDS = ("black", "white", "uniform", "gradient", "noise")


def empty_image(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw an image without objects.

    Args:
        kind: one of `EMPTY_KINDS`: all levels 0; all 255; one color; a color that changes smoothly; noise on a color.
        size: height H and width W.
        rng: source of random numbers.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: another kind.
    """
    if kind not in EMPTY_KINDS:
        raise ValueError(f"{kind!r} is not one of {', '.join(EMPTY_KINDS)}")
    if kind in ("black", "white"):
        return np.full((*size, 3), 0 if kind == "black" else 255, np.uint8)
    # Half of the colors are dark, as fluorescence without objects is.
    brightest, channels = rng.choice([30, 255]), rng.choice([1, 3])
    levels = np.broadcast_to(rng.uniform(0, brightest, channels), (3,)).astype(np.float32)
    image = np.broadcast_to(levels, (*size, 3))
    if kind == "gradient":
        corners = rng.uniform(-60, 60, (2, 2)).astype(np.float32)
        image = image + cv2.resize(corners, size[::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    if kind == "noise":
        noise = rng.standard_normal(size, np.float32)
        image = image + noise[..., None] * np.float32(rng.uniform(1, 30))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
