"""Readers of video frames: from a file, a directory of images, a list, or a stream that can be read only once.

Every source can be read again from any frame, so that a long clip is never held in memory: it is read once for the
network and once more for the images of its result.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Union

import cv2
import numpy as np
import torch

from ..data.file_listing import is_hidden
from ..data.image_io import IMAGE_SUFFIXES, image_names
from ..data.image_sources import ImageSource, load_image
from ..errors import first_few
from ..utils.file_io import is_special
from .frame_source import DEFAULT_RATE as DEFAULT_RATE
from .frame_source import Frame as Frame
from .frame_source import FrameSource as FrameSource
from .frame_source import UnreadFrame
from .seeking import SeekTarget, find_target
from .time_points import Point

logger = logging.getLogger(__name__)

Video = Union[str, "os.PathLike[str]", Iterable[ImageSource]]


class VideoFile(FrameSource):
    """A video file, rotated as a player would show it; read with PyAV if installed, else with OpenCV."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self._av = _pyav()
        if self._av is None:
            self._open_with_opencv().release()
            return
        with self._open() as container:
            stream = container.streams.video[0]
            self.rate = Fraction(stream.average_rate or DEFAULT_RATE)
            estimate = float(stream.duration * stream.time_base * self.rate) if stream.duration else 0.0
            self.length = stream.frames or round(estimate) or None
            # The frame count of a trimmed video includes hidden frames; its duration does not.
            self._expected = min(float(stream.frames), estimate or stream.frames)

    def identity(self) -> list[Any]:
        assert self.path is not None
        status = self.path.stat()
        return [self.path.name, status.st_size, status.st_mtime_ns]

    def _open(self) -> Any:
        try:
            container = self._av.open(str(self.path))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: cannot be read as a video ({error})") from error
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self.path}: no video stream in this {container.format.long_name} file; give another")
        return container

    def index_of(self, point: Point) -> int | None:
        return super().index_of(point) if point.seconds is None or self._av is None else None

    def unread_from(self, begin: Point) -> Iterator[UnreadFrame]:
        """Yield the frames from a point on, reached by a seek where that is exact; else all frames."""
        if self._av is None:
            yield from super().unread_from(begin)
            return
        target = None
        with self._open() as container, suppress(self._av.error.FFmpegError):
            target = find_target(container, container.streams.video[0], begin)
        yield from self._read_pyav(target)

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        frames = self._read_opencv() if self._av is None else self._read_pyav()
        return (frame for frame in frames if frame.index >= start)

    def _read_pyav(self, target: SeekTarget | None = None) -> Iterator[UnreadFrame]:
        self._reset_damage()
        begin, index, zero = None, -1, None
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = self._decoded(container.demux(stream))
            if target is not None and (begin := target.go(container, stream, frames)) is not None:
                self._reset_damage()  # of the frames before
                frames, zero = itertools.chain([begin], frames), target.zero
            if target is None or begin is not None:
                for index, frame in enumerate(frames, start=0 if target is None else target.index):
                    seconds = frame.time if frame.time is not None else float(index / self.rate)
                    self.zero = zero = seconds if zero is None else zero
                    yield UnreadFrame(index, seconds - zero, partial(_upright, frame))
        if target is not None and begin is None:
            yield from self._read_pyav()
            return
        self._compare_length(index + 1)

    def _reset_damage(self) -> None:
        self.damaged, self._skipped = False, 0

    def _decoded(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Yield the frames of all packets that can be decoded; log one warning about skipped packets at the end."""
        try:
            for packet in packets:
                try:
                    frames = packet.decode()
                except self._av.error.FFmpegError:
                    self._skipped, self.damaged = self._skipped + 1, True
                    continue
                yield from frames
        except self._av.error.FFmpegError as error:  # demuxing failed: later packets cannot be reached
            self.damaged = True
            logger.warning("%s: the video is damaged, its remaining frames are skipped (%s)", self.path, error)
        finally:  # also if the rest of the video is not requested
            if self._skipped:
                message = "%s: the video is damaged; %d packets and their frames are skipped"
                logger.warning(message, self.path, self._skipped)

    def _open_with_opencv(self) -> Any:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            capture.release()
            raise ValueError(f"{self.path}: cannot be read as a video by OpenCV; 'pip install av' adds formats")
        self.rate = Fraction(capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE).limit_denominator(1001)
        self._expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.length = int(self._expected) or None
        return capture

    def _read_opencv(self) -> Iterator[UnreadFrame]:
        self._reset_damage()
        capture, good = self._open_with_opencv(), True

        def load() -> np.ndarray | None:
            nonlocal good
            good, pixels = capture.retrieve()
            return np.ascontiguousarray(pixels[..., ::-1]) if good else None

        try:
            count = 0
            while capture.grab():
                yield UnreadFrame(count, float(count / self.rate), load)
                if not good:
                    break
                count += 1
        finally:
            capture.release()
        self._compare_length(count)

    def _compare_length(self, count: int) -> None:
        """Detect what the readers may not report: a truncated file and, with OpenCV, a damaged one."""
        if count < 0.9 * self._expected - 1:  # lengths are estimates in some files
            self.damaged = True
            message = "%s: only %d of about %d frames could be read; the video is damaged, truncated or trimmed"
            logger.warning(message, self.path, count, self._expected)


class FrameFolder(FrameSource):
    """A directory of images, sorted by the numbers in their names, or a list of image files in the given order."""

    def __init__(self, path: Path, files: Sequence[Path] | None = None) -> None:
        self.path, self.name = path, path.name or "clip"
        if files is None:
            given = sorted((entry for entry in path.iterdir() if not entry.is_dir()), key=natural_order)
            images = set(image_names(entry.name for entry in given))
            self.files = [file for file in given if file.name in images]
        else:
            given = list(files)
            self.files = [p for p in given if p.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(p.name)]
        frames = set(self.files)
        others = [file.name for file in given if file not in frames and not is_hidden(file.name)]
        if others and self.files:
            text = "%s: %d files are no frames, because their names do not end like those of images: %s"
            logger.warning(text, path, len(others), first_few(others))
        if not self.files:
            raise ValueError(f"{path}: no frames in this directory (supported: {', '.join(sorted(IMAGE_SUFFIXES))})")
        self.length = len(self.files)

    def identity(self) -> list[Any]:
        return [self.name, self.length, _digest(self.files)]

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        for index in range(start, len(self.files)):
            yield UnreadFrame(index, float(index / self.rate), partial(load_image, self.files[index]))


class FrameList(FrameSource):
    """Images in memory: a list, or an array or tensor whose first dimension is time."""

    def __init__(self, images: Sequence[ImageSource], name: str = "clip") -> None:
        if not len(images):
            raise ValueError("the video is an empty list; give at least one frame")
        self._images, self.name, self.length = images, name, len(images)

    def identity(self) -> list[Any]:
        height, width = load_image(self._images[0]).shape[:2]
        return [self.name, len(self._images), height, width, _digest(self._images)]

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        for index in range(start, len(self._images)):
            yield UnreadFrame(index, float(index / self.rate), partial(load_image, self._images[index]))


class FrameStream(FrameSource):
    """Images that can be read only once, such as those of a generator; they are stored as PNG files to be read again.

    `directory` may already hold the first images of the same stream, from an earlier run. They are compared, so that
    the results of two videos are never mixed.
    """

    length = None

    def __init__(self, images: Iterable[ImageSource], directory: Path, name: str = "clip") -> None:
        self._rest, self._directory, self.name = iter(images), directory, name
        self._taken = 0  # number of images of this stream that are in the directory
        self._error: BaseException | None = None

    def identity(self) -> list[Any]:
        """Return the name, and size and hash of the first image, which is read from the stream."""
        first = next(self.read(), None)
        return [self.name] if first is None else [self.name, *first.image.shape[:2], _digest([first.image])]

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        for index in itertools.count(min(start, self._taken)):
            image = None
            if index >= self._taken and (image := self._take()) is None:
                return
            if index >= start:
                source = self._file(index) if image is None else image
                yield UnreadFrame(index, float(index / self.rate), partial(load_image, source))

    def _take(self) -> np.ndarray | None:
        """Read the next image and store it in the directory; return None at the end.

        Raises:
            ValueError: the directory holds a different image with this index, or the stream raised an error before.
        """
        if self._error is not None:  # a generator that raised an error looks exhausted
            message = f"{self.name}: this stream failed at frame {self._taken}; pass a new one"
            raise ValueError(message) from self._error
        try:
            image = next((load_image(source) for source in self._rest), None)
            self._keep(image)
        except BaseException as error:
            self._error = error
            raise
        if image is None:
            self.length = self._taken
        else:
            self._taken += 1
        return image

    def _keep(self, image: np.ndarray | None) -> None:
        """Write the next image, or compare it with the stored one; None: there must be no stored one."""
        path = self._file(self._taken)
        stored = _image_in(path)
        if stored is None and image is not None:
            _write_png(path, image)
        elif stored is not None and (image is None or not np.array_equal(image, stored)):
            raise ValueError(
                f"{path.parent}: stored frame {self._taken} differs from this video, so the results belong to another "
                f"video; delete the directory {path.parent.parent} or choose another work_dir"
            )

    def _file(self, index: int) -> Path:
        return self._directory / f"{index:08d}.png"


def open_frames(video: Video | FrameSource, spool: Path) -> FrameSource:
    """Open a video in any of the supported forms.

    Args:
        video: a video file, a directory of frames, a list of images or image files, an array or tensor whose first
            dimension is time, or any iterable of images.
        spool: directory for the frames of an iterable that can be read only once.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the input is not a video.
    """
    if isinstance(video, FrameSource):
        return video
    if isinstance(video, str | os.PathLike):
        path = Path(video).expanduser()
        if path.is_dir():
            return FrameFolder(path)
        if is_special(path):
            raise ValueError(f"{path} is a pipe or device; give a video file or a directory of frames")
        if not path.is_file():
            raise FileNotFoundError(f"video {str(path)!r} does not exist; give a video file or a directory of frames")
        return VideoFile(path)
    if isinstance(video, np.ndarray | torch.Tensor):
        if video.ndim != 4:
            raise ValueError(f"a video array must have 4 dimensions, time first, not shape {tuple(video.shape)}")
        return FrameList(video)  # type: ignore[arg-type]
    if isinstance(video, Sequence):
        return FrameList(video)
    if isinstance(video, Iterable):
        return FrameStream(video, spool)
    raise ValueError(f"video must be a path or an iterable of images, not {type(video).__name__}")


def _digest(images: Iterable[ImageSource]) -> str:
    """Return a hash of images: of their pixels, or of name, size and modification time of files."""
    digest = hashlib.blake2b(digest_size=16)
    for source in images:
        if isinstance(source, str | os.PathLike) and os.path.isfile(source):
            status = os.stat(source)
            digest.update(repr((os.path.basename(source), status.st_size, status.st_mtime_ns)).encode())
        else:
            image = load_image(source)
            digest.update(repr(image.shape).encode())
            digest.update(image.tobytes())
    return digest.hexdigest()


def _image_in(path: Path) -> np.ndarray | None:
    """Load an image; return None if the file is missing or truncated."""
    try:
        return load_image(path)
    except (OSError, ValueError):
        return None


def _write_png(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) RGB atomically, but without fsync, for speed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part.png")
    if not cv2.imwrite(str(part), image[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 1)):
        raise ValueError(f"{path}: cannot be written; is the disk full?")
    os.replace(part, path)


def natural_order(path: Path) -> list[Any]:
    """Return a sort key that puts frame9 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _upright(frame: Any) -> np.ndarray:
    """Return the pixels of a decoded frame (H, W, 3) uint8 RGB, rotated as a player shows them."""
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarters))


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        return None
    return av
