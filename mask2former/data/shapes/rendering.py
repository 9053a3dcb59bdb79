"""Drawing of scenes: images with anti-aliased edges, and the exact map of what is visible where.

A pixel belongs to the topmost thing that covers at least half of it, else to the stuff below. That is decided from the
same coverage with which the colors are blended, so that masks and image agree to the pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from .scene import Pose, Scene, Thing
from .textures import STUFF, TILE, noise_bytes, thing_tile

LEAST_PIXELS = 8
"""Things of which fewer pixels are visible, in all frames, are left out of the scene."""

LEAST_PART = 0.2
"""Things of which a smaller part is visible, in all frames, are left out of the scene."""

_HALF = 128  # of a coverage of 255


@dataclass(frozen=True)
class Rendering:
    """The frames of a scene.

    Attributes:
        scene: as it was drawn; without things that would hardly be visible.
        images: T images, uint8 RGB (H, W, 3).
        ids: T maps, int32 (H, W): 1 + the index in `scene.stuff`, or after those 1 + the index in `scene.things`.
    """

    scene: Scene
    images: list[np.ndarray]
    ids: list[np.ndarray]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the class names of the ids, which count from 1: stuff, then things."""
        return (*self.scene.stuff, *(thing.category for thing in self.scene.things))


class _Cover(NamedTuple):
    """How much of each pixel a thing covers, 0 to 255: uint8 (h, w), whose upper left pixel is (x, y) of the frame."""

    x: int
    y: int
    alpha: np.ndarray


def render(scene: Scene) -> Rendering:
    """Draw all frames of a scene. The result depends on the scene alone."""
    covers = [
        [_cover(thing.rings, thing, _pose(scene, thing, frame)) for thing in scene.things]
        for frame in range(scene.frames)
    ]
    grounds = [_view(scene, scene.regions, frame).astype(np.int32) + 1 for frame in range(scene.frames)]
    keep = np.ones(len(scene.things), bool)
    while True:  # what is left out uncovers others, so this ends when all that remain are visible
        ids = [_visible(ground, row, keep, len(scene.stuff)) for ground, row in zip(grounds, covers, strict=True)]
        enough = _visible_enough(ids, covers, keep, len(scene.stuff))
        if (enough == keep).all():
            break
        keep = enough
    kept = [int(index) for index in np.flatnonzero(keep)]
    scene = replace(scene, things=tuple(scene.things[index] for index in kept))
    covers = [[row[index] for index in kept] for row in covers]
    everything = np.ones(len(kept), bool)
    ids = [_visible(ground, row, everything, len(scene.stuff)) for ground, row in zip(grounds, covers, strict=True)]
    return Rendering(scene, _paint(scene, covers), ids)


# ------------------------------------------------------------------ coverage and ids
def _pose(scene: Scene, thing: Thing, frame: int) -> Pose:
    pose, (x, y) = thing.at(scene.time_of(frame)), scene.camera_at(frame)
    return replace(pose, center=(pose.center[0] - x, pose.center[1] - y))


def _view(scene: Scene, ground: np.ndarray, frame: int) -> np.ndarray:
    """Return what the camera sees of the ground, (H + 2 m, W + 2 m, ...), in a frame."""
    x, y = scene.camera_at(frame)
    top, left = scene.margin + y, scene.margin + x
    return ground[top : top + scene.size[0], left : left + scene.size[1]]


def _matrix(thing: Thing, pose: Pose) -> np.ndarray:
    """Return the (2, 2) matrix from the unit circle to pixels."""
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    return pose.radius * np.array([[cos, -sin], [sin, cos]]) @ thing.stretch


def _cover(rings: Sequence[np.ndarray], thing: Thing, pose: Pose) -> _Cover:
    """Compute coverage by drawing the outline four to eight times as large, and averaging."""
    matrix = _matrix(thing, pose)
    points = [ring @ matrix.T + pose.center for ring in rings]
    low = np.floor(points[0].min(axis=0)).astype(int)
    high = np.ceil(points[0].max(axis=0)).astype(int)
    scale = 8 if pose.radius < 16 else 4
    width, height = (int(side) for side in np.maximum(high - low, 1))
    canvas = np.zeros((height * scale, width * scale), np.uint8)
    # 4 bits behind the point; the center of pixel 0 is at 0, while our edges of pixels are whole numbers.
    fixed = [np.round(((ring - low) * scale - 0.5) * 16).astype(np.int32) for ring in points]
    cv2.fillPoly(canvas, fixed, 255, shift=4)
    return _Cover(int(low[0]), int(low[1]), cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA))


def _overlap(cover: _Cover, shape: Sequence[int]) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Return the part of the frame that the array of a cover lies on, and that part of the array; None: none."""
    height, width = cover.alpha.shape
    top, left = max(0, cover.y), max(0, cover.x)
    bottom, right = min(shape[0], cover.y + height), min(shape[1], cover.x + width)
    if top >= bottom or left >= right:
        return None
    inside = slice(top - cover.y, bottom - cover.y), slice(left - cover.x, right - cover.x)
    return (slice(top, bottom), slice(left, right)), inside


def _visible(ground: np.ndarray, covers: Sequence[_Cover], keep: np.ndarray, first: int) -> np.ndarray:
    """Return int32 (H, W) ids: those of the ground, and first + 1 + index where a thing is topmost."""
    ids = ground.copy()
    for index in np.flatnonzero(keep).tolist():
        overlap = _overlap(covers[index], ids.shape)
        if overlap is not None:
            ids[overlap[0]][covers[index].alpha[overlap[1]] >= _HALF] = first + 1 + index
    return ids


def _visible_enough(
    ids: Sequence[np.ndarray], covers: Sequence[Sequence[_Cover]], keep: np.ndarray, first: int
) -> np.ndarray:
    """Return bool (N,): things that in some frame show `LEAST_PIXELS`, and `LEAST_PART` of all their pixels."""
    enough = np.zeros_like(keep)
    for frame, row in zip(ids, covers, strict=True):
        seen = np.bincount(frame.ravel(), minlength=first + 1 + len(keep))[first + 1 :]
        full = np.array([np.count_nonzero(cover.alpha >= _HALF) for cover in row])
        enough |= (seen >= LEAST_PIXELS) & (seen >= LEAST_PART * full)
    return enough & keep


# ------------------------------------------------------------------ colors
def _paint(scene: Scene, covers: Sequence[Sequence[_Cover]]) -> list[np.ndarray]:
    rng = np.random.default_rng(scene.seed)
    ground = _paint_ground(rng, scene)
    backdrop = ground[:: max(1, len(ground) // 16), :: max(1, ground.shape[1] // 16)]
    tiles = []
    for thing in scene.things:
        x, y = (int(np.clip(part / side * 15, 0, 15)) for part, side in zip(thing.pose.center, scene.size[::-1]))
        tiles.append(thing_tile(np.random.default_rng(thing.seed), backdrop[y, x]))
    images = []
    for frame, row in enumerate(covers):
        canvas = np.ascontiguousarray(_view(scene, ground, frame))
        for thing, tile, cover in zip(scene.things, tiles, row, strict=True):
            pose = _pose(scene, thing, frame)
            _cast_shadow(canvas, cover, thing, pose, scene)
            _paint_thing(canvas, cover, tile, _matrix(thing, pose), pose)
        images.append(_expose(rng, canvas, scene))
    return images


def _paint_ground(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return float32 (H + 2 m, W + 2 m, 3): each region in its texture."""
    ground = np.empty((*scene.regions.shape, 3), np.float32)
    for index, name in enumerate(scene.stuff):
        mask = np.equal(scene.regions, index).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if width and height:
            place = slice(y, y + height), slice(x, x + width)
            cv2.copyTo(STUFF[name](rng, height, width), mask[place], ground[place])
    return ground


def _cast_shadow(canvas: np.ndarray, cover: _Cover, thing: Thing, pose: Pose, scene: Scene) -> None:
    distance = thing.height * pose.radius
    pad = 1 + int(distance / 2)
    alpha = cv2.copyMakeBorder(cover.alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    if pad > 1:
        alpha = cv2.blur(alpha, (pad, pad))
    x, y = (round(part * distance) for part in scene.light.sun)
    shadow = _Cover(cover.x - pad + x, cover.y - pad + y, alpha)
    overlap = _overlap(shadow, canvas.shape)
    if overlap is not None:
        canvas[overlap[0]] *= 1 - shadow.alpha[overlap[1]][..., None] * np.float32(scene.light.shadow / 255)


def _paint_thing(canvas: np.ndarray, cover: _Cover, tile: np.ndarray, matrix: np.ndarray, pose: Pose) -> None:
    overlap = _overlap(cover, canvas.shape)
    if overlap is None:
        return
    # From pixels of the cover to those of the tile, whose inscribed circle is the unit circle.
    back = np.linalg.inv(matrix) * (TILE / 2)
    corner = np.array([cover.x + 0.5, cover.y + 0.5]) - pose.center
    affine = np.column_stack([back, back @ corner + TILE / 2 - 0.5])
    size = cover.alpha.shape[::-1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    colors = cv2.warpAffine(tile, affine, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    area, inside = overlap
    part = cover.alpha[inside][..., None] * np.float32(1 / 255)
    canvas[area] += (colors[inside] - canvas[area]) * part


def _expose(rng: np.random.Generator, canvas: np.ndarray, scene: Scene) -> np.ndarray:
    """Return the image, uint8 RGB (H, W, 3): the colors of the canvas in the light of the scene, with noise."""
    height, width = canvas.shape[:2]
    right, down = scene.light.slope
    y, x = _axes(height, width)
    brightness = np.float32(right) * x + (1 + np.float32(down) * y)
    lit = cv2.multiply(canvas, cv2.merge([brightness * factor for factor in scene.light.cast]))
    noise = noise_bytes(rng, height, width * 3).reshape(height, width, 3)
    strength = scene.light.noise / 73.9  # the standard deviation of bytes
    return cv2.addWeighted(noise, strength, lit, 1.0, -127.5 * strength, dtype=cv2.CV_8U)


@functools.lru_cache(maxsize=4)
def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (H, 1) and columns (1, W) from -0.5 to 0.5, float32."""
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    return y, np.linspace(-0.5, 0.5, width, dtype=np.float32)[None]
