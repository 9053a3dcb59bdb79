"""Numbered samples: image or clip number p of a split depends on the seed, the split, p and the options alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .rendering import Rendering, render
from .scene import Options, draw_scene

VERSION = 1
"""Rises when the same seed gives other scenes than before."""

Split = Literal["train", "val"]
Kind = Literal["image", "clip"]

SPLITS: tuple[Split, ...] = ("train", "val")


def sample(
    options: Options, seed: int, split: Split, number: int, *, frames: int = 1, kind: Kind = "image"
) -> Rendering:
    """Draw one sample.

    The same arguments give the same pixels with the same versions of NumPy and OpenCV; they may differ in a few places
    between processors.

    Args:
        options: what scenes may hold.
        seed: of the dataset, 0 or more.
        split: "train" or "val", which share no scene.
        number: of the sample, from 0.
        frames: number of frames; of images 1.
        kind: "clip" draws other scenes than "image".
    """
    stream = (seed, SPLITS.index(split), ("image", "clip").index(kind), number)
    return render(draw_scene(np.random.default_rng(stream), options, frames))
