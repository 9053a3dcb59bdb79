"""Reading of a video file from a frame in its middle, without decoding what comes before.

The packets before the frame are read, not decoded: they say how many frames are shown before it. That takes a small
part of the time of decoding. Only files in which one packet is one frame, with its time, are handled so; others
are decoded from their beginning, because a frame's number must not depend on how it was reached.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from .time_points import TOLERANCE, Point

logger = logging.getLogger(__name__)

# Others may have packets without a frame (VP8), or several frames in a packet (MPEG-4 part 2 in AVI).
_CODECS = frozenset({"h264", "hevc", "av1", "vp9", "mjpeg", "prores"})
_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm"})


@dataclass(frozen=True)
class SeekTarget:
    """A frame that can be reached by a seek.

    Attributes:
        index: its number in the video.
        pts: its time, in units of the stream.
        key: time of the packet at which decoding starts.
        zero: time of the first frame of the video, in seconds.
    """

    index: int
    pts: int
    key: int
    zero: float

    def go(self, container: Any, stream: Any, frames: Iterator[Any]) -> Any | None:
        """Seek, decode up to the frame and return it; None if the seek did not end before it.

        Args:
            container: the open file; nothing of it has been decoded yet.
            stream: its video stream.
            frames: the frames decoded of it, of which none was taken yet.
        """
        container.seek(self.key, stream=stream)
        for frame in frames:
            if frame.pts is None or frame.pts > self.pts:
                break
            if frame.pts == self.pts:
                return frame
        logger.debug("%s: frame %d was not reached by a seek", container.name, self.index)
        return None


def find_target(container: Any, stream: Any, begin: Point) -> SeekTarget | None:
    """Find the first frame at or behind a point by reading packets; None if decoding from the start is necessary.

    Args:
        container: the open file, at its beginning; afterwards it is somewhere else.
        stream: its video stream.
        begin: the point.
    """
    if stream.codec_context.name not in _CODECS or not _CONTAINERS & {*container.format.name.split(",")}:
        return None
    times: list[int] = []  # of all packets so far, in the order in which they are shown
    keys: list[tuple[int, int]] = []  # (pts, dts) of packets that need no earlier ones
    index = -1
    for packet in container.demux(stream):
        if not packet.size:
            break  # the end of the file
        pts, dts = packet.pts, packet.dts  # Matroska has no dts for the first packets
        if pts is None or (dts is not None and dts > pts) or packet.is_corrupt or packet.is_discard:
            return None
        index = _index(times, begin, stream.time_base)
        if 0 <= index < len(times) and dts is not None and dts > times[index]:
            break  # all later packets are shown later
        if (at := bisect_left(times, pts)) < len(times) and times[at] == pts:
            return None
        insort(times, pts)
        if packet.is_keyframe:
            keys.append((pts, pts if dts is None else dts))
    index = _index(times, begin, stream.time_base)
    if not 0 <= index < len(times):
        return None
    before = [dts for pts, dts in keys if pts <= times[index]]
    # Decoding starts one key frame early: with open GOPs or a gradual refresh, the frames next to a key
    # frame need what comes before it.
    if len(before) < 3:
        return None  # reading from the beginning decodes hardly more
    return SeekTarget(index, times[index], before[-2], float(times[0] * stream.time_base))


def _index(times: list[int], begin: Point, time_base: Fraction) -> int:
    """Return the index of the first frame at or behind `begin` among those with these times, -1 without times."""
    if not times or begin.seconds is None:
        return -1 if begin.frame is None else begin.frame
    ticks = (Fraction(begin.seconds) - Fraction(TOLERANCE)) / time_base
    return bisect_left(times, times[0] + ceil(ticks))
