"""The demo on moving pictures: a video file or webcam, frame by frame, into an mp4 that plays everywhere."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from mask2former.results import Result
from mask2former.saving import CocoDocument
from mask2former.segmenter import Segmenter

WINDOW = "Mask2Former (q: quit)"
_TICKS = 90_000  # time units a second in the written file: divides all usual frame rates


def run(segment: Segmenter, args: argparse.Namespace) -> int:
    """Segment --video-input or --webcam. Returns the exit status; ValueError for what the user can mend."""
    source = VideoFile(Path(args.video_input)) if args.video_input is not None else Camera(args.webcam)
    folder, video, document = _targets(args, source)
    if video is None and document is None and args.save is None and not _has_windows():
        raise ValueError(
            "this OpenCV has no windows for the camera; give --output FILE.mp4, or install opencv-python"
        )
    colors, labels = TrackColors(), {"auto": None, "yes": True, "no": False}[args.labels]
    coco = CocoDocument(segment.classes) if document else None
    masks = folder if args.save and "masks" in args.save else None
    writer, count, started = None, 0, time.perf_counter()
    show = args.webcam is not None and video is None and _has_windows()
    try:
        with tqdm(total=source.length, unit="frame", mininterval=0.5) as progress:
            for index, (seconds, frame) in enumerate(source):
                result = segment(frame)
                result = result.filter(non_overlapping=True) if args.non_overlapping else result
                if video or show:
                    ids = colors.update(result) if result.instances is not None else None
                    picture = np.asarray(result.draw(color_ids=ids, labels=labels, scale=args.scale or 1.0))
                    if show and not _shown(picture):
                        break
                    if video:
                        writer = writer or VideoWriter(video, source.rate)
                        writer.add(picture, seconds)
                if coco is not None:
                    coco.add(result, f"{source.name}#{index:06d}")
                if masks is not None:
                    result.save_masks(masks / "masks", f"{source.name}_{index:06d}")
                count = index + 1
                progress.update()
    except KeyboardInterrupt:
        print("interrupted: what is done so far is kept", file=sys.stderr)
    finally:
        source.close()
        if writer is not None:
            writer.close()
    if not count:
        raise ValueError(f"{source.name}: no frame could be read")
    written = [video] if video else []
    if coco is not None and document is not None:
        written.append(coco.save(document))
    if masks is not None:
        written.append(masks / "masks")
    rate = count / (time.perf_counter() - started)
    print(f"{count} frames of {source.name}, {rate:.2f} frames/s" + (", without sound" if video else ""))
    for path in written:
        print(f"  {os.path.relpath(path)}")
    return 1 if source.damaged else 0


def _targets(args: argparse.Namespace, source: VideoFile | Camera) -> tuple[Path, Path | None, Path | None]:
    """Output folder, video file (or None) and json file (or None) of --output and --save."""
    save = set(args.save or ("overlay",))
    if args.output is None:
        if isinstance(source, Camera) and args.save is None:
            return Path(), None, None  # shown in a window
        folder = Path("output/demo")
    else:
        target = Path(args.output).expanduser()
        suffix = target.suffix.lower()
        if suffix and not target.is_dir():
            if suffix not in (".mp4", ".mov", ".mkv", ".json"):
                raise ValueError(
                    f"--output {target}: use a folder, .mp4, .mov or .mkv for the video, or .json"
                )
            if args.save:
                raise ValueError(f"--save chooses what goes into a folder, but --output {target} is one file")
            if isinstance(source, VideoFile) and target.exists() and target.samefile(source.path):
                raise ValueError(f"--output {target} is the input itself")
            return target.parent, None if suffix == ".json" else target, target if suffix == ".json" else None
        folder = target
    video = folder / f"{source.name}_segmented.mp4" if "overlay" in save else None
    return folder, video, folder / "results.json" if "json" in save else None


# ------------------------------------------------------------------ reading
def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need PyAV: pip install av (or pip install 'mask2former[video]')") from error
    return av


class VideoFile:
    """Frames of a file as (time in seconds, (H, W, 3) uint8 RGB), upright as a player would show them."""

    def __init__(self, path: Path) -> None:
        av = _av()
        try:
            self._container = av.open(str(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as a video ({error})") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{path}: this file has no pictures, only: {self._container.format.long_name}")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.path, self.name = path, path.stem
        self.rate = Fraction(self._stream.average_rate or 25)
        self.damaged = False
        duration = self._stream.duration
        known = float(duration * self._stream.time_base * self.rate) if duration else 0.0
        self.length = self._stream.frames or round(known) or None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        first = None
        try:
            for index, frame in enumerate(self._container.decode(self._stream)):
                pixels = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                seconds = frame.time if frame.time is not None else float(index / self.rate)
                first = seconds if first is None else first
                yield seconds - first, np.ascontiguousarray(np.rot90(pixels, turns))
        except _av().error.FFmpegError as error:
            self.damaged = True
            print(
                f"error: {self.path}: the video is damaged here, the rest is left out ({error})",
                file=sys.stderr,
            )

    def close(self) -> None:
        self._container.close()


class Camera:
    """Frames of a webcam, with the time they came."""

    length = None
    rate = Fraction(25)
    damaged = False

    def __init__(self, number: int) -> None:
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            self._capture.release()
            raise ValueError(
                f"camera {number} cannot be opened: none is connected, it is in use, or access is denied. "
                "Try another number (--webcam 1), or use --video-input FILE."
            )
        self.name = f"camera{number}"

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        start = time.perf_counter()
        while True:
            good, frame = self._capture.read()
            if not good:
                return
            yield time.perf_counter() - start, np.ascontiguousarray(frame[..., ::-1])

    def close(self) -> None:
        self._capture.release()


# ------------------------------------------------------------------ writing and showing
class VideoWriter:
    """H.264 with 4:2:0 colours, the form that browsers and phones play. Takes its name when playable."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        av = _av()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._part = path, path.with_name(f".{path.stem}.part{path.suffix}")
        options = {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
        self._container = av.open(str(self._part), "w", options=options)
        self._stream = self._container.add_stream(
            "libx264", rate=rate, options={"crf": "20", "preset": "medium"}
        )
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._last = -1
        self._size: tuple[int, int] | None = None

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Append (H, W, 3) uint8 RGB, to be shown from this time on. Odd sizes lose a row or column."""
        if self._size is None:
            self._size = (picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2)
            self._stream.height, self._stream.width = self._size
        height, width = self._size
        if picture.shape[0] < height or picture.shape[1] < width:
            picture = cv2.resize(picture, (width, height))
        frame = _av().VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        self._last = max(round(seconds * _TICKS), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._size is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if self._size is None:
            self._part.unlink(missing_ok=True)
        else:
            os.replace(self._part, self._path)


def _has_windows() -> bool:
    """Whether this OpenCV can open windows (the headless build cannot)."""
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
        return True
    except cv2.error:
        return False


def _shown(picture: np.ndarray) -> bool:
    """Show a picture; False when the user pressed q or Escape or closed the window."""
    cv2.imshow(WINDOW, np.ascontiguousarray(picture[..., ::-1]))
    if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
        with suppress(cv2.error):
            cv2.destroyWindow(WINDOW)
        return False
    return cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1


class TrackColors:
    """Keeps an object's colour from frame to frame: numbers for `draw(color_ids=...)`.

    Objects of two frames belong together when they have one class and their boxes overlap (IoU >= 0.3).
    """

    def __init__(self) -> None:
        self._boxes, self._labels, self._ids = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)
        self._next = 0

    def update(self, result: Result) -> np.ndarray:
        """(N,) number of each instance of the new frame."""
        assert result.instances is not None
        boxes, labels = result.instances.boxes, result.instances.labels
        overlap = _box_iou(boxes, self._boxes) * (labels[:, None] == self._labels[None])
        ids = np.full(len(boxes), -1)
        for new, old in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[new, old] >= 0.3:
                ids[new] = self._ids[old]
        fresh = np.flatnonzero(ids < 0)
        ids[fresh] = self._next + np.arange(len(fresh))
        self._next += len(fresh)
        self._boxes, self._labels, self._ids = boxes, labels, ids
        return ids


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of XYXY boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
