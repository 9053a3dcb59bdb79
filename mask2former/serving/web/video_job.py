"""Tracking and drawing of an uploaded video, within limits; both can be stopped and say how far they are."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...segmenter import Segmenter
from ...video.frame_source import FrameSource, UnreadFrame
from ...video.reader import VideoFile
from ...video.results import VideoResult
from ..engine import Engine, Limits, Turn
from ..errors import RequestTimeoutError, ServingError, TooLargeError, UnreadableImageError, UnsupportedTypeError
from ..limits import VIDEO_FORMATS, video_format

logger = logging.getLogger(__name__)

_START = 64  # bytes that tell the type
_POLL = 0.2  # seconds between two looks whether a job that waits was stopped
_DRAWING = threading.BoundedSemaphore(1)  # videos that are drawn at once: it takes all cores


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
        self._shape: tuple[int, ...] | None = None  # of the first frame
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
            yield replace(frame, load=partial(self._load, frame))

    def _load(self, frame: UnreadFrame) -> np.ndarray | None:
        """Decode a frame, whose size may be another one than the header says."""
        image = frame.load()
        if image is not None:
            self._check_pixels(image.shape[0], image.shape[1], self._limits)
            self._shape = self._shape or image.shape
            if image.shape != self._shape:
                raise UnreadableImageError("the frames of this video have different sizes, which cannot be tracked")
        return image


class TrackingJob:
    """A video that is tracked, then drawn; `future` has the `VideoResult`."""

    def __init__(self, engine: Engine, video: LimitedVideo, model: str, score_threshold: float | None) -> None:
        """Queue the job.

        Raises:
            ServingError: as `Engine.submit_job`.
        """
        self._video, self._score_threshold = video, score_threshold
        self._seconds = engine.batching.job_timeout
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

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise CancelledError

    def _run(self, segmenter: Segmenter, turn: Turn) -> VideoResult:
        def checked() -> None:
            turn()
            self._check_stop()

        self.started = True
        self._video.turn = checked
        try:
            online = not hasattr(segmenter.model, "clip_outputs")
            return segmenter.track(self._video, online=online, score_threshold=self._score_threshold)
        finally:
            self._video.turn = None

    def write(self, directory: Path) -> Future[None]:
        """Draw the video of the result and write its files in another thread; see `write_files`.

        Returns:
            A future that fails with `CancelledError` after `stop`, or with a `ServingError`; the directory is then
            deleted.
        """
        self._video.done = 0
        written: Future[None] = Future()
        arguments = (self.future.result(), directory, written)
        threading.Thread(target=self._write, args=arguments, name="mask2former-drawing", daemon=True).start()
        return written

    def _write(self, result: VideoResult, directory: Path, written: Future[None]) -> None:
        end = time.monotonic() + self._seconds

        def check() -> None:
            self._check_stop()
            if time.monotonic() > end:
                raise RequestTimeoutError("the video was not drawn in time; a shorter or smaller one takes less")

        try:
            while not _DRAWING.acquire(timeout=_POLL):
                check()
            try:
                self._video.turn = check
                write_files(result, directory)
            finally:
                _DRAWING.release()
            check()
        except (ServingError, CancelledError) as error:
            shutil.rmtree(directory, ignore_errors=True)
            written.set_exception(error)
        except Exception:
            logger.exception("a video cannot be drawn")
            shutil.rmtree(directory, ignore_errors=True)
            written.set_exception(ServingError("the video cannot be drawn; the log of the server says why"))
        else:
            written.set_result(None)


def write_files(result: VideoResult, directory: Path) -> None:
    """Write the files of a video's result, by the names of `store.VIDEO_DOWNLOADS`."""
    result.save_all(video=directory / "overlay.mp4")
    result.save(directory / "tracks.json")
    for table in ("tracks", "counts"):
        result.save_table(directory / f"{table}.csv", table)
