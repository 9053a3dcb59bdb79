"""Tracking of an uploaded video in the worker of an engine, within limits; it can be stopped and says how far it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...segmenter import Segmenter
from ...video.frame_source import FrameSource, UnreadFrame
from ...video.reader import VideoFile
from ...video.results import VideoResult
from ..engine import Engine, Limits, Turn
from ..errors import ServingError, TooLargeError, UnreadableImageError, UnsupportedTypeError
from ..limits import VIDEO_FORMATS, video_format

_START = 64  # bytes that tell the type


class LimitedVideo(FrameSource):
    """A video file from a stranger: its type, size, length and frames are checked, the latter as they are read.

    Args:
        path: the file.
        limits: what it may be.

    Raises:
        UnsupportedTypeError, TooLargeError, UnreadableImageError: it is refused.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        size = path.stat().st_size
        if size > limits.max_video_bytes:
            raise TooLargeError(f"the video has {size:,} bytes; the limit is {limits.max_video_bytes:,}")
        with path.open("rb") as file:
            if video_format(file.read(_START)) is None:
                raise UnsupportedTypeError(f"the content is no video of a known type; send {', '.join(VIDEO_FORMATS)}")
        try:
            self._file = VideoFile(path)
            self._check_header(path, limits)
        except ServingError:
            raise
        except Exception:  # of decoders; their messages have the path
            raise UnreadableImageError("this video is damaged: it cannot be read") from None
        self._limits = limits
        self.path, self.name = path, path.stem
        self.length, self.rate = self._file.length, self._file.rate
        self.turn: Turn | None = None  # called before each frame
        self.done = 0  # frames that were read
        if self.length is not None:
            self._check_time(Fraction(self.length) / self.rate * Fraction(9, 10))  # it is an estimate in some files

    def _check_header(self, path: Path, limits: Limits) -> None:
        """Check the size of frames before one is decoded, where PyAV tells it."""
        with contextlib.suppress(ImportError):
            import av

            with av.open(str(path)) as container:
                codec = container.streams.video[0].codec_context
                self._check_pixels(codec.height, codec.width, limits)

    @staticmethod
    def _check_pixels(height: int, width: int, limits: Limits) -> None:
        if height * width > limits.max_video_pixels:
            raise TooLargeError(
                f"the frames have {width}x{height} pixels; the limit is {limits.max_video_pixels:,} pixels"
            )

    def _check_time(self, seconds: float | Fraction) -> None:
        if seconds > self._limits.max_video_seconds:
            limit = f"{self._limits.max_video_seconds:g} seconds"
            raise TooLargeError(f"the video is longer than {limit}, which is the limit; send a shorter part")

    @property
    def damaged(self) -> bool:  # type: ignore[override]
        """Return whether frames could not be read."""
        return self._file.damaged

    def identity(self) -> list[Any]:
        return self._file.identity()

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        most = self._limits.max_video_seconds * max(float(self.rate), 1.0) * 2 + 100  # times in a file may stand still
        for frame in self._file._read(start):
            if self.turn is not None:
                self.turn()
            self._check_time(frame.seconds)
            if frame.index > most:
                self._check_time(float("inf"))
            self.done = frame.index + 1
            yield frame


class TrackingJob:
    """A video that is tracked; `future` has the `VideoResult`."""

    def __init__(self, engine: Engine, video: LimitedVideo, model: str, score_threshold: float | None) -> None:
        """Queue the job.

        Raises:
            ServingError: as `Engine.submit_job`.
        """
        self._video, self._score_threshold = video, score_threshold
        self._stop = threading.Event()
        self.started = False
        self.future: Future[VideoResult] = engine.submit_job(self._run, model)

    @property
    def fraction(self) -> float | None:
        """Return how much of the video was read, 0 to 1; None if its length is unknown."""
        return None if not self._video.length else min(1.0, self._video.done / self._video.length)

    @property
    def frames(self) -> int:
        """Return how many frames were read."""
        return self._video.done

    @property
    def length(self) -> int | None:
        """Return how many frames the video has, by its header; None if it is unknown."""
        return self._video.length

    def stop(self) -> None:
        """Let the job end at its next frame, or never start."""
        self._stop.set()
        self.future.cancel()

    def _run(self, segmenter: Segmenter, turn: Turn) -> VideoResult:
        def checked() -> None:
            turn()
            if self._stop.is_set():
                raise CancelledError

        self.started = True
        self._video.turn = checked
        try:
            online = not hasattr(segmenter.model, "clip_outputs")
            return segmenter.track(self._video, online=online, score_threshold=self._score_threshold)
        finally:
            self._video.turn = None  # frames are read again, in another thread, to be drawn


def write_files(result: VideoResult, directory: Path) -> None:
    """Write the files of a video's result, by the names of `store.VIDEO_DOWNLOADS`."""
    result.save_all(video=directory / "overlay.mp4")
    result.save(directory / "tracks.json")
    for table in ("tracks", "counts"):
        result.save_table(directory / f"{table}.csv", table)
