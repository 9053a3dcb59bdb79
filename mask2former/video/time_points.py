"""Points of a video that people write: seconds, times such as "1:30", and frame numbers such as "120f"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any

TimePoint = str | float

# Times of frames are rounded in files and here; two frames are much farther apart than this, in seconds.
TOLERANCE = 1e-6
_LARGEST = 10**9  # seconds: far more than any video has, and small enough to count frames exactly

_FRAME = re.compile(r"(\d{1,12})f", re.ASCII)
_TIME = re.compile(r"(?:(?:(\d{1,6}):)?(\d{1,6}):)?(\d{1,10}(?:\.\d{0,20})?|\.\d{1,20})", re.ASCII)


@dataclass(frozen=True)
class Point:
    """A point of a video: the index of a frame, or a time in seconds after the first frame; the other one is None."""

    frame: int | None = None
    seconds: float | None = None

    def reached(self, index: int, seconds: float) -> bool:
        """Return whether the frame with this index and time is at or behind the point."""
        if self.seconds is not None:
            return seconds >= self.seconds - TOLERANCE
        return index >= (self.frame or 0)

    def at_rate(self, rate: Fraction) -> int:
        """Return the index of the first frame at or behind the point, of a video whose frames are evenly spaced."""
        if self.seconds is None:
            return self.frame or 0
        return max(math.ceil((Fraction(self.seconds) - Fraction(TOLERANCE)) * rate), 0)

    def __str__(self) -> str:
        return f"{self.frame}f" if self.seconds is None else repr(self.seconds)


def parse_point(value: TimePoint, name: str) -> Point:
    """Read a point of a video; `name` is the argument's, for the error message.

    Args:
        value: seconds, as a number or as text (12.5, "12.5"); a time "mm:ss" or "hh:mm:ss", with decimals if needed
            ("1:30", "01:02:03.5"); or the number of a frame, counted from 0, with an f behind it ("120f").

    Raises:
        ValueError: another text, or a number that is negative or not finite.
    """
    point = _of_text(value.strip()) if isinstance(value, str) else _of_number(value)
    if point is None:
        raise ValueError(
            f'{name}={value!r}: give seconds (12.5), a time ("1:30", "01:02:03.5") or the number of a frame with an f '
            '("120f"); none is negative'
        )
    return point


def _of_number(value: Any) -> Point | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    seconds = float(value)
    return Point(seconds=seconds) if 0 <= seconds <= _LARGEST else None


def _of_text(text: str) -> Point | None:
    if match := _FRAME.fullmatch(text):
        return Point(frame=int(match[1]))
    if not (match := _TIME.fullmatch(text)):
        return None
    hours, minutes, seconds = match[1], match[2], float(match[3])
    if (minutes is not None and seconds >= 60) or (hours is not None and int(minutes) >= 60):
        return None  # "1:75" is more likely a mistake than 2:15
    return _of_number(int(hours or 0) * 3600 + int(minutes or 0) * 60 + seconds)
