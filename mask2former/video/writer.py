"""Writing of videos that play everywhere: H.264 with 4:2:0 chroma subsampling in an mp4."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..utils.locks import Lock
from .audio import AudioCopy, open_audio
from .frame_source import FrameSource

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")
_NAME_PART = 200  # characters of the file's name in those of the files beside it, which must not get too long
_TICKS = 90_000  # time units per second in the file: divisible by all common frame rates


class VideoWriter:
    """Writer of a video file, which gets its name only when it is complete. Odd sizes lose a row or a column.

    PyAV writes H.264 with 4:2:0 chroma subsampling, which browsers and phones play. Without PyAV, or where it has no
    H.264 encoder, OpenCV writes MPEG-4 part 2 and a warning says so. The video begins with the first image that is
    added, whatever its time.

    Args:
        path: the file; its directory is created, and the file locked against other processes until `close`.
        rate: frames per second.
        audio: the video from which the frames come; its sound, from the first frame to the last, is copied if that is
            possible (PyAV, a codec that the file can hold, no frames left out), otherwise the log says why not.

    Raises:
        InUseError: another process writes the file.
    """

    def __init__(self, path: Path, rate: Fraction, audio: FrameSource | None = None) -> None:
        self._lock = output_lock(path)
        self._path, self._part = path, path.with_name(f".{path.stem[:_NAME_PART]}.part{path.suffix}")
        self._size: tuple[int, int] | None = None
        self._begin: float | None = None
        self._file: _H264 | _Mpeg4 = _H264(self._part, rate, audio) if _has_h264() else _Mpeg4(self._part, rate)

    def add(self, image: np.ndarray, seconds: float) -> None:
        """Append an image (H, W, 3) uint8 RGB, shown from `seconds` on. Later images are resized to the first."""
        if self._size is None:
            self._size = (max(image.shape[0] // 2 * 2, 2), max(image.shape[1] // 2 * 2, 2))
        height, width = self._size
        if image.shape[0] < height or image.shape[1] < width:
            image = cv2.resize(image, (width, height))
        self._begin = seconds if self._begin is None else self._begin
        self._file.add(np.ascontiguousarray(image[:height, :width]), seconds - self._begin, self._begin)

    def close(self, keep: bool = True) -> None:
        """Finish the file; delete it if `keep` is False or it has no frames."""
        with self._lock:
            try:
                self._file.close(keep)
            except BaseException:  # a full disk, Ctrl-C
                self._part.unlink(missing_ok=True)
                raise
            if self._size is None or not keep:
                self._part.unlink(missing_ok=True)
            else:
                os.replace(self._part, self._path)


def output_lock(path: Path) -> Lock:
    """Lock a video that will be written.

    Raises:
        InUseError: another process writes it; the message names it and its host.
    """
    return Lock(path.with_name(f".{path.name[:_NAME_PART]}.lock"), str(path))


def _has_h264() -> bool:
    try:
        import av
    except ImportError:
        return False
    return "libx264" in av.codecs_available


class _H264:
    def __init__(self, path: Path, rate: Fraction, source: FrameSource | None) -> None:
        import av

        self._av: Any = av
        self._source, self._rate = source, rate
        self._audio: AudioCopy | None = None
        options = {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
        self._container: Any = av.open(str(path), "w", options=options)
        encoding = {"crf": "20", "preset": "medium"}
        self._stream: Any = self._container.add_stream("libx264", rate=rate, options=encoding)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._last = -1

    def add(self, image: np.ndarray, seconds: float, begin: float) -> None:
        if self._last < 0:
            self._stream.height, self._stream.width = image.shape[:2]
            self._start_audio(begin)
        self._copy_audio(seconds)  # in step with the images, so that players need not look far ahead
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        self._last = max(round(seconds * _TICKS), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def _start_audio(self, begin: float) -> None:
        """Add a stream for the sound of the source, which starts at `begin` seconds of it."""
        if self._source is None or (audio := open_audio(self._source, self._container)) is None:
            return
        # PyAV 14 split the method in two.
        add = getattr(self._container, "add_stream_from_template", None) or self._container.add_stream
        self._audio = audio
        audio.start(begin, add(template=audio.stream))

    def _copy_audio(self, until: float) -> None:
        if self._audio is not None:
            for packet in self._audio.until(until):
                self._container.mux(packet)

    def close(self, keep: bool) -> None:
        if self._last >= 0:
            self._container.mux(self._stream.encode(None))
        if self._last >= 0 and keep:
            self._copy_audio(self._last / _TICKS + float(1 / self._rate))
        if self._audio is not None:
            self._audio.close()
        self._container.close()


class _Mpeg4:
    def __init__(self, path: Path, rate: Fraction) -> None:
        logger.warning(
            "%s is written as MPEG-4 part 2, which browsers do not play; pip install av for H.264", path.name
        )
        self._path, self._rate = path, rate
        self._writer: Any = None

    def add(self, image: np.ndarray, seconds: float, begin: float) -> None:
        if self._writer is None:
            size = (image.shape[1], image.shape[0])
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), float(self._rate), size)
            if not self._writer.isOpened():
                raise ValueError(f"{self._path}: this OpenCV cannot write videos; pip install av")
        self._writer.write(np.ascontiguousarray(image[..., ::-1]))

    def close(self, keep: bool) -> None:
        if self._writer is not None:
            self._writer.release()
