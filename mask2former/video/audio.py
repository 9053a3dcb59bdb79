"""Sound of a video file, copied without decoding into the video that is written from its frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from .frame_source import FrameSource

logger = logging.getLogger(__name__)


class AudioCopy:
    """Packets of the first audio stream of a file. Open it with `open_audio`."""

    def __init__(self, container: Any, stream: Any, zero: float) -> None:
        self.stream = stream
        self._container, self._zero = container, zero
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        self._begin = Fraction(0)

    def start(self, seconds: float, target: Any) -> None:
        """Begin with the first packet that starts at a time of the video or after it; write to the stream `target`.

        Args:
            seconds: time in the video, counted from its first frame.
            target: the audio stream of the file to be written.
        """
        self._begin = Fraction(self._zero + seconds) / self.stream.time_base
        if seconds > 1:
            # A second earlier, because a seek is exact to a packet only.
            offset = int(self._begin - 1 / self.stream.time_base)
            self._container.seek(offset, stream=self.stream)
        self._packets, self._target = self._read(), target
        self._next = next(self._packets, None)

    def until(self, seconds: float) -> Iterator[Any]:
        """Yield the packets that start before a time, in seconds after `start`; their times count from there, too."""
        stop = Fraction(seconds) / self.stream.time_base
        while self._next is not None and self._next.pts < stop:
            packet, self._next = self._next, None
            packet.stream = self._target
            yield packet
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the file."""
        self._packets, self._next = iter(()), None
        self._container.close()

    def _read(self) -> Iterator[Any]:
        import av

        shift, last = round(self._begin), -1
        try:
            for packet in self._container.demux(self.stream):
                if not packet.size or packet.pts is None:
                    continue
                packet.pts -= shift
                packet.dts = packet.pts  # audio has one order
                if packet.pts > last and packet.pts >= 0:
                    last = packet.pts
                    yield packet
        except av.error.FFmpegError as error:
            logger.warning("%s: the sound is damaged and ends early (%s)", self._container.name, error)


def open_audio(source: FrameSource, target: Any) -> AudioCopy | None:
    """Open the sound of a video for copying; None, with the reason in the log, if there is none that can be copied.

    Args:
        source: the video whose frames are written.
        target: the open file to be written.
    """
    import av

    if source.path is None or not source.path.is_file():
        return None
    try:
        container: Any = av.open(str(source.path))
    except (OSError, ValueError):
        return None
    reason = None
    if not container.streams.audio:
        container.close()
        return None
    stream = container.streams.audio[0]
    if source.every != 1:
        reason = f"every={source.every}"
    elif stream.codec_context is None or stream.codec_context.name not in target.supported_codecs:
        codec = "an unknown codec" if stream.codec_context is None else stream.codec_context.name
        reason = f"a {target.format.name} file cannot hold {codec}; .mkv holds more"
    if reason is not None:
        logger.warning("%s: written without sound (%s)", source.name, reason)
        container.close()
        return None
    return AudioCopy(container, stream, source.zero)
