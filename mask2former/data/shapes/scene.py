"""What a scene consists of, before it is drawn: regions of stuff, things in their order of depth, light and camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ...utils.hints import did_you_mean
from ..datasets.categories import class_table, things
from .outlines import OUTLINES, Rings
from .textures import smooth_noise

CLASSES = class_table("shapes")
THING_CLASSES = tuple(entry["name"] for entry in things(CLASSES))
STUFF_CLASSES = tuple(entry["name"] for entry in CLASSES if not entry["isthing"])

SMALLEST = 3.0
"""Least radius of a thing in pixels, in the frame in which it is smallest."""

_PAN = 0.08  # most that the camera moves in a clip, in widths of the image


@dataclass(frozen=True)
class Options:
    """What scenes may hold.

    Args:
        size: height and width of the images in pixels, each 32 to 4096.
        objects: least and largest number of things that are placed in an image, at least 1 and at most 200. Things of
            which too little remains visible are left out afterwards.
        classes: names of the classes to draw, at least one of things and one of stuff; empty: all.

    Raises:
        ValueError: one of them is outside its range, or a class is unknown.
    """

    size: tuple[int, int] = (256, 256)
    objects: tuple[int, int] = (2, 60)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(32 <= side <= 4096 for side in self.size):
            raise ValueError(f"images of {self.size[0]} x {self.size[1]} pixels: each side must be 32 to 4096")
        low, high = self.objects
        if not 1 <= low <= high <= 200:
            raise ValueError(f"{low} to {high} objects: must be 1 to 200, the smaller number first")
        known = (*THING_CLASSES, *STUFF_CLASSES)
        for name in self.classes:
            if name not in known:
                raise ValueError(f"there is no class {name!r}.{did_you_mean(name, known)} All: {', '.join(known)}")
        if not self.things or not self.stuff:
            raise ValueError(
                f"the classes {', '.join(self.classes)} need at least one thing ({', '.join(THING_CLASSES)}) and one "
                f"kind of stuff ({', '.join(STUFF_CLASSES)})"
            )

    @property
    def things(self) -> tuple[str, ...]:
        """Return the names of the things to draw, in the order of the class table."""
        return tuple(name for name in THING_CLASSES if not self.classes or name in self.classes)

    @property
    def stuff(self) -> tuple[str, ...]:
        """Return the names of the stuff to draw, in the order of the class table."""
        return tuple(name for name in STUFF_CLASSES if not self.classes or name in self.classes)


@dataclass(frozen=True)
class Pose:
    """Where a thing is in one frame: center (x, y) and radius in pixels, angle in radians."""

    center: tuple[float, float]
    radius: float
    angle: float


@dataclass(frozen=True)
class Thing:
    """A thing and its motion; times are frames from the middle of the clip.

    Attributes:
        category: its name.
        rings: outline inside the unit circle.
        pose: at time 0.
        stretch: (2, 2) matrix that is applied to the outline first.
        velocity: (x, y) pixels a frame.
        spin: radians a frame.
        growth: factor of the radius a frame.
        sway: amplitude (x, y) in pixels, and its angular frequency a frame and phase.
        height: distance of its shadow, relative to the radius.
        seed: of its texture.
    """

    category: str
    rings: Rings
    pose: Pose
    stretch: np.ndarray
    velocity: tuple[float, float] = (0.0, 0.0)
    spin: float = 0.0
    growth: float = 1.0
    sway: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    height: float = 0.2
    seed: int = 0

    def at(self, time: float) -> Pose:
        """Return the pose at a time; the radius stays at least `SMALLEST`."""
        wave = math.sin(self.sway[2] * time + self.sway[3]) - math.sin(self.sway[3])
        x = self.pose.center[0] + self.velocity[0] * time + self.sway[0] * wave
        y = self.pose.center[1] + self.velocity[1] * time + self.sway[1] * wave
        radius = max(SMALLEST, self.pose.radius * self.growth**time)
        return Pose((x, y), radius, self.pose.angle + self.spin * time)


@dataclass(frozen=True)
class Light:
    """The light of a scene.

    Attributes:
        cast: (3,) factor of R, G and B.
        slope: how much brighter it is to the right and downwards, across the image.
        sun: direction (x, y) in which shadows fall, of length 1.
        shadow: darkness of shadows, 0 to 1.
        noise: standard deviation of the noise of the sensor, in gray levels.
    """

    cast: np.ndarray
    slope: tuple[float, float]
    sun: tuple[float, float]
    shadow: float
    noise: float


@dataclass(frozen=True)
class Scene:
    """A scene of `frames` frames.

    Attributes:
        size: height and width of the image.
        regions: uint8 (H + 2 m, W + 2 m): which of `stuff` a pixel of the ground is; m is `margin`.
        margin: how much of the ground lies outside the image on each side when the camera is in its middle position.
        stuff: names.
        things: from the lowest to the topmost.
        light: see `Light`.
        pan: movement of the camera (x, y) in pixels a frame.
        frames: number of frames.
        seed: of textures and noise.
    """

    size: tuple[int, int]
    regions: np.ndarray
    margin: int
    stuff: tuple[str, ...]
    things: tuple[Thing, ...]
    light: Light
    pan: tuple[float, float] = (0.0, 0.0)
    frames: int = 1
    seed: int = field(default=0)

    def time_of(self, frame: int) -> float:
        """Return the time of a frame, 0 in the middle of the clip."""
        return frame - (self.frames - 1) / 2

    def camera_at(self, frame: int) -> tuple[int, int]:
        """Return the offset (x, y) of the camera from its middle position, in full pixels, at most `margin`."""
        time = self.time_of(frame)
        x, y = round(self.pan[0] * time), round(self.pan[1] * time)
        return max(-self.margin, min(self.margin, x)), max(-self.margin, min(self.margin, y))


def draw_scene(rng: np.random.Generator, options: Options, frames: int = 1) -> Scene:
    """Draw a scene at random.

    Args:
        rng: source of everything that is drawn.
        options: what it may hold.
        frames: 1 for an image; in more frames things and camera move.
    """
    height, width = options.size
    margin = math.ceil(_PAN / 2 * max(height, width)) if frames > 1 else 0
    count = min(len(options.stuff), int(rng.integers(2, 5)))
    stuff = tuple(str(name) for name in rng.permutation(options.stuff)[:count])
    regions = _draw_regions(rng, height + 2 * margin, width + 2 * margin, stuff)
    low, high = options.objects
    # Uniform in the logarithm: few large things are as frequent as many small ones.
    number = int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))
    drawn = [_draw_thing(rng, options, number, frames) for _ in range(min(high, number))]
    angle = rng.uniform(0, 2 * math.pi)
    light = Light(
        cast=(rng.uniform(0.65, 1.2) * rng.uniform(0.82, 1.18, 3)).astype(np.float32),
        slope=(rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)),
        sun=(math.cos(angle), math.sin(angle)),
        shadow=rng.uniform(0.25, 0.6),
        noise=rng.uniform(1.0, 6.0),
    )
    pan = (0.0, 0.0)
    if frames > 1:
        reach, heading = 2 * margin / (frames - 1) * rng.uniform(0, 1), rng.uniform(0, 2 * math.pi)
        pan = (reach * math.cos(heading), reach * math.sin(heading))
    seed = int(rng.integers(2**32))
    return Scene(options.size, regions, margin, stuff, tuple(drawn), light, pan, frames, seed)


def _draw_regions(rng: np.random.Generator, height: int, width: int, stuff: Sequence[str]) -> np.ndarray:
    """Return uint8 (height, width), indices of `stuff`: nearest of some centers, with borders that noise makes ragged.

    Each has at least 4 % of the pixels, unless eight attempts fail. A wide metric makes layers, of which the sky is
    the uppermost; a round one makes patches.
    """
    side = min(height, width)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    regions = np.zeros((height, width), np.uint8)
    for _ in range(8):
        layers = rng.random() < 0.6
        flat = rng.uniform(0.0, 0.25) if layers else rng.uniform(0.7, 1.2)
        tilt = rng.uniform(-0.25, 0.25)
        positions = (np.arange(len(stuff)) + rng.uniform(0.2, 0.8, len(stuff))) / len(stuff)
        positions = positions if layers else rng.permutation(positions)
        order = sorted(range(len(stuff)), key=lambda index: stuff[index] != "sky") if layers else range(len(stuff))
        ragged, cell = rng.uniform(0.03, 0.12) * side, rng.uniform(0.08, 0.25) * side
        best: np.ndarray = np.full((height, width), np.inf, np.float32)
        for place, index in zip(positions, order, strict=True):
            across = rng.uniform(0.1, 0.9) * width
            down = y + (np.float32(tilt) * (x - np.float32(width / 2)) - np.float32(place * height))
            aside = np.repeat(np.float32(flat) * (x - np.float32(across)), height, axis=0)
            noise = smooth_noise(rng, height, width, max(3.0, cell), 3)
            distance = cv2.scaleAdd(noise, ragged, cv2.magnitude(down, aside))
            regions[distance < best] = index
            best = cv2.min(best, distance)
        if np.bincount(regions.ravel(), minlength=len(stuff)).min() >= 0.04 * regions.size:
            break
    return regions


def _draw_thing(rng: np.random.Generator, options: Options, number: int, frames: int) -> Thing:
    height, width = options.size
    side = min(height, width)
    category = str(options.things[int(rng.integers(len(options.things)))])
    typical = 0.3 * math.sqrt(height * width / (number + 1))
    radius = float(np.clip(typical * math.exp(rng.normal(0.0, 0.45)), SMALLEST, 0.26 * side))
    center = (rng.uniform(0.02, 0.98) * width, rng.uniform(0.02, 0.98) * height)
    pose = Pose(center, radius, rng.uniform(0, 2 * math.pi))
    shear, aspect = rng.uniform(-0.12, 0.12), rng.uniform(0.88, 1.0)
    stretch = np.array([[1.0, shear], [0.0, aspect]])
    rings = OUTLINES[category](rng)
    shadow, seed = rng.uniform(0.1, 0.35), int(rng.integers(2**32))
    if frames == 1:
        return Thing(category, rings, pose, stretch, height=shadow, seed=seed)
    kind, heading = rng.random(), rng.uniform(0, 2 * math.pi)
    if kind < 0.25:  # crosses the image: comes in, leaves, or both
        speed = rng.uniform(0.7, 1.4) * side / frames
    else:
        speed = rng.uniform(0.0, 0.35) * side / frames if kind < 0.85 else 0.0
    amplitude = rng.uniform(0, 0.05) * side if kind < 0.85 else 0.0
    across = heading + math.pi / 2
    return Thing(
        category,
        rings,
        pose,
        stretch,
        velocity=(speed * math.cos(heading), speed * math.sin(heading)),
        spin=rng.uniform(-1, 1) * 2.0 / frames if kind < 0.85 else 0.0,
        growth=math.exp(rng.uniform(-0.6, 0.6) / frames),
        sway=(
            amplitude * math.cos(across),
            amplitude * math.sin(across),
            rng.uniform(2, 8) / frames,
            rng.uniform(0, 6),
        ),
        height=shadow,
        seed=seed,
    )
