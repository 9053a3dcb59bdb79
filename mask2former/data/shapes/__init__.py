"""The shapes world: a seeded generator of images and clips with exact ground truth, which needs no license.

Things (disks, stars, letters, ...) lie in a true order of depth on stuff (sky, grass, water, brick, sand), overlap and
cast shadows. `mask2former data shapes` writes datasets of it; tests, tutorials and comparisons train on them.
"""

from __future__ import annotations

from .rendering import Rendering, render
from .sampling import Kind, Split, sample
from .scene import CLASSES, STUFF_CLASSES, THING_CLASSES, Light, Options, Pose, Scene, Thing, draw_scene

__all__ = [
    "CLASSES",
    "STUFF_CLASSES",
    "THING_CLASSES",
    "Kind",
    "Light",
    "Options",
    "Pose",
    "Rendering",
    "Scene",
    "Split",
    "Thing",
    "draw_scene",
    "render",
    "sample",
]
