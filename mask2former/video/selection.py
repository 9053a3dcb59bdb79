"""A part of a video: frames from one point to another, all or every N-th.

Frames keep the index and the time that they have in the complete video. What works on consecutive frames (windows,
tracks) counts their positions in the selection instead.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from .frame_source import FrameSource, UnreadFrame
from .time_points import Point, TimePoint, parse_point


@dataclass(frozen=True)
class Selection:
    """Which frames: those from `start` (None: the first) to before `end` (None: all), of these each `every`-th."""

    start: Point | None = None
    end: Point | None = None
    every: int = 1

    @classmethod
    def parse(cls, start: TimePoint | None = None, end: TimePoint | None = None, every: int = 1) -> Selection:
        """Read the arguments of `select_frames`.

        Raises:
            ValueError: a point that cannot be read, an end that is not behind the start, or `every` below 1.
        """
        first = None if start is None else parse_point(start, "start")
        stop = None if end is None else parse_point(end, "end")
        begin = first or Point(frame=0)
        comparable = stop is not None and (stop.seconds is None) == (begin.seconds is None)
        if stop is not None and (stop in (Point(0), Point(None, 0.0)) or (comparable and not _before(begin, stop))):
            raise ValueError(f"end={end!r} must lie behind start={0 if start is None else start!r}")
        try:
            step = operator.index(every)
        except TypeError:
            step = 0
        if step < 1 or isinstance(every, bool):
            raise ValueError(f"every={every!r}: give a number of frames, at least 1 (1: all, 2: every second frame)")
        return cls(None if first in (Point(0), Point(None, 0.0)) else first, stop, step)

    def facts(self) -> dict[str, Any]:
        """Return the selection as JSON content; equal selections are equal however they were written."""
        points = {"start": self.start, "end": self.end}
        return {name: None if point is None else str(point) for name, point in points.items()} | {"every": self.every}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.facts().items() if value not in (None, 1))


class SelectedFrames(FrameSource):
    """The selected frames of a video, a video by itself with fewer frames per second if only every N-th is selected.

    `first` is known once a frame was read, unless the selection starts at frame 0 or at a numbered frame.
    """

    def __init__(self, source: FrameSource, selection: Selection) -> None:
        self.source, self.selection = source, selection
        self.name, self.path, self.every = source.name, source.path, selection.every
        self.rate = source.rate / selection.every
        start, end = self._begin.at_rate(source.rate), source.length
        self.first = start
        if selection.end is not None:
            stop = selection.end.at_rate(source.rate)
            end = stop if end is None else min(stop, end)
        self.length = None if end is None else max(-((start - end) // self.every), 0)

    @property
    def _begin(self) -> Point:
        return self.selection.start or Point(frame=0)

    def identity(self) -> list[Any]:
        return [*self.source.identity(), self.selection.facts()]

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        begin, end, first, last = self._begin, self.selection.end, None, None
        stop = None if end is None else self.source.index_of(end)
        with closing(self.source.unread_from(begin)) as frames:  # type: ignore[type-var]
            for frame in frames:
                last = frame
                if not begin.reached(frame.index, frame.seconds):
                    continue
                if end is not None and end.reached(frame.index, frame.seconds):
                    break
                if first is None:
                    self.first = first = frame.index
                    self.zero = self.source.zero
                position, rest = divmod(frame.index - first, self.every)
                if not rest and position >= start:
                    yield UnreadFrame(frame.index, frame.seconds, frame.load, position)
                if stop is not None and frame.index - rest + self.every >= stop:
                    break  # a stream is not asked for frames that nobody needs
        self.damaged = self.source.damaged
        if first is None:
            raise ValueError(self._explain_nothing(last))

    def _explain_nothing(self, last: UnreadFrame | None) -> str:
        """Describe an empty selection; `last` is the last frame that was read, if any."""
        head = f"{self.name}: no frame lies in the selection {self.selection}"
        if last is None:
            return f"{head}; the video has {self.source.length or 0} frames, {self.source.rate} per second"
        if self._begin.reached(last.index, last.seconds):  # it is behind the end already
            return f"{head}; the next frame is {last.index}f, at {last.seconds:.3f} seconds"
        return f"{head}; the last frame of the video is {last.index}f, at {last.seconds:.3f} seconds"


def select_frames(
    source: FrameSource, start: TimePoint | None = None, end: TimePoint | None = None, every: int = 1
) -> FrameSource:
    """Return a part of a video; the video itself if all of it is selected.

    Args:
        source: the video.
        start: the first frame is the one at this point or the first behind it: seconds (a number), a time ("1:30",
            "01:02:03.5") or the number of a frame ("120f"). Seconds count from the first frame.
        end: the first frame that is left out, in the same forms.
        every: N: of these, the first frame and each N-th one after it.

    Raises:
        ValueError: an invalid argument, see `Selection.parse`, or `source` is a selection already. A selection
            without a frame raises ValueError when it is read.
    """
    selection = Selection.parse(start, end, every)
    if selection == Selection():
        return source
    if isinstance(source, SelectedFrames):
        raise ValueError(f"{source.name}: only a part of this video is selected already ({source.selection})")
    return SelectedFrames(source, selection)


def _before(a: Point, b: Point) -> bool:
    return (a.frame or 0, a.seconds or 0.0) < (b.frame or 0, b.seconds or 0.0)
