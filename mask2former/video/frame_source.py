"""What all videos have in common: frames that are read in order, from any position, as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .time_points import Point

DEFAULT_RATE = Fraction(25)


@dataclass(frozen=True)
class Frame:
    """One frame of a video: its index from 0, its time in seconds, and the image (H, W, 3) uint8 RGB.

    `position` is its index among the frames that were selected of the video; without a selection, `index`.
    """

    index: int
    seconds: float
    image: np.ndarray
    position: int = -1

    def __post_init__(self) -> None:
        if self.position < 0:
            object.__setattr__(self, "position", self.index)


@dataclass(frozen=True)
class UnreadFrame:
    """A frame whose image `load` makes, before the next frame is requested; None if it cannot be decoded."""

    index: int
    seconds: float
    load: Callable[[], np.ndarray | None]
    position: int = -1


class FrameSource:
    """A video.

    Attributes:
        name: for messages and names of files.
        length: number of frames, maybe an estimate; None if it is unknown before the end.
        rate: frames per second.
        damaged: frames could not be read.
        path: the file or directory, if it is one.
        first, every: index of the frame at position 0, and distance of the indices of consecutive positions.
        zero: time of frame 0 in the file, in seconds; known once a frame was read.
    """

    name: str
    length: int | None
    rate: Fraction = DEFAULT_RATE
    damaged = False
    path: Path | None = None
    first = 0
    every = 1
    zero = 0.0

    def read(self, start: int = 0) -> Iterator[Frame]:
        """Yield the frames from position `start` on.

        Raises:
            ValueError: a frame cannot be read, or its size differs from that of the first one.
        """
        size: tuple[int, ...] | None = None
        for frame in self._read(start):
            if (image := frame.load()) is None:
                continue
            size = size or image.shape
            if image.shape != size:
                raise ValueError(
                    f"{self.name}: frame {frame.index} is {image.shape[1]}x{image.shape[0]}, but earlier "
                    f"frames are {size[1]}x{size[0]}; resize all frames of a video to one size"
                )
            yield Frame(frame.index, frame.seconds, image, frame.position)

    def unread_from(self, begin: Point) -> Iterator[UnreadFrame]:
        """Yield the frames from a point on, maybe with some before it."""
        return self._read(begin.at_rate(self.rate))

    def index_of(self, point: Point) -> int | None:
        """Return the index of the first frame at or behind a point, None if it is unknown before that is read."""
        return point.at_rate(self.rate)

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        """Yield the frames from position `start` on."""
        raise NotImplementedError

    def identity(self) -> list[Any]:
        """Return what identifies this video (JSON content), as far as known without reading all of it."""
        return [self.name]
