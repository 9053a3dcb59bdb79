"""Tables of the tracks of a video: objects per frame, and one row for each track."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from pycocotools import mask as mask_util

from ..structures.classes import ClassTable
from ..utils.tables import distinct

TRACK_COLUMNS = ("id", "class", "score", "first", "last", "frames", "seconds", "mean_area")

# What `VideoResult.masks` yields: number of the frame, its time in seconds, and track number -> RLE.
FrameMasks = tuple[int, float, Mapping[int, Mapping[str, Any]]]


class AnyTrack(Protocol):
    """The attributes of a track that the tables show."""

    @property
    def id(self) -> int: ...
    @property
    def label(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def score(self) -> float: ...


def count_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of `count_rows`: frame, seconds, the classes, total, tracks; each name once."""
    frame, seconds, total, tracks, *classes = distinct(["frame", "seconds", "total", "tracks", *names])
    return [frame, seconds, *classes, total, tracks]


def count_rows(frames: Iterable[FrameMasks], tracks: Sequence[AnyTrack], classes: ClassTable) -> Iterator[list[Any]]:
    """Yield a row for each frame: its number and time, objects of each class, all objects, and tracks so far.

    A track that is listed with several classes counts once for each of them, and once in the total.
    """
    labels: dict[int, list[int]] = {}
    for track in tracks:
        labels.setdefault(track.id, []).append(track.label)
    seen: set[int] = set()
    for index, seconds, rles in frames:
        counts = [0] * len(classes.names)
        for number in rles:
            for label in labels[number]:
                counts[label] += 1
        seen.update(rles)
        yield [index, round(seconds, 6), *counts, len(rles), len(seen)]


@dataclass
class _Seen:
    """Frames that show a track."""

    first: int
    begin: float
    last: int = 0
    end: float = 0.0
    frames: int = 0
    area: int = 0


def track_rows(frames: Iterable[FrameMasks], tracks: Sequence[AnyTrack], rate: Fraction) -> Iterator[list[Any]]:
    """Yield a row for each track, see `TRACK_COLUMNS`; of a track that no frame shows, four cells are empty.

    Args:
        frames: the masks of all frames.
        tracks: the tracks, in the order of the rows.
        rate: tracked frames per second; the last frame counts with this duration.
    """
    shown: dict[int, _Seen] = {}
    for index, seconds, rles in frames:
        areas = mask_util.area(list(rles.values())).tolist() if rles else []
        for number, area in zip(rles, areas, strict=True):
            seen = shown.setdefault(number, _Seen(index, seconds))
            seen.last, seen.end = index, seconds
            seen.frames, seen.area = seen.frames + 1, seen.area + area
    for track in tracks:
        row = [track.id, track.name, track.score]
        if (seen_track := shown.get(track.id)) is None:
            yield [*row, None, None, 0, None, None]
            continue
        duration = seen_track.end - seen_track.begin + float(1 / rate)
        mean = seen_track.area / seen_track.frames
        yield [*row, seen_track.first, seen_track.last, seen_track.frames, round(duration, 6), mean]
