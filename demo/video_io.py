"""The demo on videos: a video or webcam segmented image by image, or a video whose objects are tracked.

A video is a file or a directory of frames; overlays are written to an mp4 that plays everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from mask2former.result_files import CocoDocument
from mask2former.results import Result
from mask2former.segmenter import Segmenter
from mask2former.utils.file_io import short_path
from mask2former.video.journal import JournalMismatch
from mask2former.video.reader import DEFAULT_RATE, Frame, FrameFolder, FrameSource, open_frames
from mask2former.video.results import VideoResult, refuse_input
from mask2former.video.writer import VIDEO_SUFFIXES, VideoWriter

WINDOW = "Mask2Former (q: quit)"


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the arguments that only apply to videos."""
    group.add_argument("--online", action="store_true", help="track objects frame by frame (image models always do)")
    group.add_argument(
        "--window", type=int, default=24, metavar="N", help="frames that the network processes together (default: 24)"
    )
    group.add_argument("--overlap", type=int, default=6, metavar="N", help="frames that two windows share (default: 6)")
    group.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="objects per window (default: TEST.DETECTIONS_PER_VIDEO, for image models TEST.DETECTIONS_PER_IMAGE)",
    )
    group.add_argument(
        "--save-frames", action="store_true", help="also write each drawn frame, as frames/000000.jpg ..."
    )


def run(segment: Segmenter, args: argparse.Namespace) -> int:
    """Segment the video or camera; return the exit status. ValueError for errors that the user can fix."""
    tracking = args.task == "video" or hasattr(segment.model, "clip_outputs")
    if args.webcam is not None and tracking:
        raise ValueError("--webcam is segmented image by image: use an image model, and omit --task video")
    if args.webcam is not None:
        return segment_frames(segment, Camera(args.webcam), args)
    source = _source(args)
    return track_objects(segment, source, args) if tracking else segment_frames(segment, source, args)


def _source(args: argparse.Namespace) -> FrameSource:
    """Open the video of --video-input, or the images of --input as its frames."""
    if args.video_input is not None:
        return open_frames(args.video_input, Path())
    files = [Path(name) for name in args.input]
    if len(files) == 1:
        return open_frames(files[0], Path())
    missing = next((str(path) for path in files if not path.is_file()), None)
    if missing:
        raise FileNotFoundError(f"--input {missing} does not exist")
    return FrameFolder(files[0].parent, files)


def track_objects(segment: Segmenter, source: FrameSource, args: argparse.Namespace) -> int:
    """Track objects through the video; return the exit status. The same command resumes a stopped run."""
    directory, video, document = _targets(args, source, ("overlay", "json"))
    work = directory / f".{source.name}_tracks"
    masks = directory / "masks" if args.save and "masks" in args.save else None
    images = directory / "frames" if args.save_frames else None
    refuse_input(source, video, masks, images)
    started = time.perf_counter()
    result = _track(segment, source, work, args)
    rate, count = len(result) / (time.perf_counter() - started), len(result.tracks)
    labels = {"auto": None, "yes": True, "no": False}[args.labels]
    written = [] if document is None else result.save(document)
    if video or masks or images:
        drawing = {"labels": labels, "scale": args.scale or 1.0}
        written += result.save_all(video=video, images=images, masks=masks, drawing=drawing, progress=True)
    _drop(work)
    print(f"{len(result)} frames of {source.name}, {rate:.2f} frames/s, {count} track{'s' * (count != 1)}")
    for track in result.tracks[:10]:
        print(f"  {track.id}: {track.name}, score {track.score:.2f}, frames {track.first} to {track.last - 1}")
    if not result.tracks:
        print(f"  no object has a score of at least {args.confidence_threshold}; try --confidence-threshold 0.2")
    for path in written:
        print(f"  {short_path(path)}")
    return 1 if result.damaged else 0


def _track(segment: Segmenter, source: FrameSource, work: Path, args: argparse.Namespace) -> VideoResult:
    online = args.online or not hasattr(segment.model, "clip_outputs")
    for _ in range(2):
        try:
            return segment.track(
                source,
                online=online,
                window=args.window,
                overlap=args.overlap,
                top_k=args.top_k,
                min_size=args.min_size,
                work_dir=work,
                progress=True,
            )
        except JournalMismatch as error:
            print(f"discarding a stopped run with other arguments ({error})", file=sys.stderr)
            _drop(work)
        except KeyboardInterrupt:
            print("interrupted: the same command resumes from here", file=sys.stderr)
            raise
    raise AssertionError("a new journal matches its run")


def _drop(work: Path) -> None:
    """Delete a journal, the files that validate its windows first: what an interrupt leaves is not resumed."""
    for name in ("finished.json", "state.npz"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work)


def segment_frames(segment: Segmenter, source: FrameSource | Camera, args: argparse.Namespace) -> int:
    """Segment each image by itself, with matched colors from frame to frame; return the exit status."""
    directory, video, document = _targets(args, source, ("overlay",))
    if video is None and document is None and args.save is None and not _has_windows():
        raise ValueError("this OpenCV build cannot open a window; give --output FILE.mp4, or install opencv-python")
    colors, labels = TrackColors(), {"auto": None, "yes": True, "no": False}[args.labels]
    coco = CocoDocument(segment.classes) if document else None
    masks = directory if args.save and "masks" in args.save else None
    writer, count, keep, started = None, 0, False, time.perf_counter()
    show = args.webcam is not None and video is None and _has_windows()
    try:
        with tqdm(total=source.length, unit="frame", mininterval=0.5) as progress:
            for frame in source.read():
                result = segment(frame.image)
                result = result.filter(non_overlapping=True) if args.non_overlapping else result
                if video or show:
                    ids = colors.update(result) if result.instances is not None else None
                    image = np.asarray(result.draw(color_ids=ids, labels=labels, scale=args.scale or 1.0))
                    if show and not _shown(image):
                        break
                    if video:
                        writer = writer or VideoWriter(video, source.rate)
                        writer.add(image, frame.seconds)
                if coco is not None:
                    coco.add(result.to_coco(), result.size, f"{source.name}#{frame.index:06d}")
                if masks is not None:
                    result.save_masks(masks / "masks", f"{source.name}_{frame.index:06d}")
                count = frame.index + 1
                progress.update()
        keep = True
    except KeyboardInterrupt:
        keep = True
        print("interrupted: the frames so far are kept", file=sys.stderr)
    finally:
        if writer is not None:
            writer.close(keep=keep)  # after an error, the video of an earlier run is left unchanged
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
        print(f"  {short_path(path)}")
    return 1 if source.damaged else 0


def _targets(
    args: argparse.Namespace, source: FrameSource | Camera, default: tuple[str, ...]
) -> tuple[Path, Path | None, Path | None]:
    """Return the output directory, video file (or None) and JSON file (or None) of --output and --save."""
    save = set(args.save or default)
    if args.output is None:
        if isinstance(source, Camera) and args.save is None:
            return Path(), None, None  # shown in a window
        directory = Path("output/demo")
    else:
        target = Path(args.output).expanduser()
        suffix = target.suffix.lower()
        if suffix and not target.is_dir():
            if suffix not in (*VIDEO_SUFFIXES, ".json"):
                raise ValueError(f"--output {target}: use a directory, .mp4, .mov or .mkv for the video, or .json")
            if args.save:
                raise ValueError(f"--save selects files of a directory, but --output {target} is a file; drop --save")
            path = None if isinstance(source, Camera) else source.path
            if path is not None and target.exists() and target.samefile(path):
                raise ValueError(f"--output {target} is the input itself; choose another path")
            return target.parent, None if suffix == ".json" else target, target if suffix == ".json" else None
        directory = target
    video = directory / f"{source.name}_segmented.mp4" if "overlay" in save else None
    return directory, video, directory / "results.json" if "json" in save else None


# ------------------------------------------------------------------ reading
class Camera:
    """Frames of a webcam, with the time at which they were read."""

    length = None
    rate = DEFAULT_RATE
    damaged = False

    def __init__(self, number: int) -> None:
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            self._capture.release()
            raise ValueError(
                f"camera {number} cannot be opened: it is not connected, in use, or access is denied. "
                "Try another number (--webcam 1), or use --video-input FILE."
            )
        self.name = f"camera{number}"

    def read(self) -> Iterator[Frame]:
        """Yield frames until the camera gives no more."""
        start = time.perf_counter()
        try:
            for index in itertools.count():
                good, frame = self._capture.read()
                if not good:
                    return
                yield Frame(index, time.perf_counter() - start, np.ascontiguousarray(frame[..., ::-1]))
        finally:
            self._capture.release()


# ------------------------------------------------------------------ showing
def _has_windows() -> bool:
    """Return whether this OpenCV build can open windows (the headless build cannot)."""
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
        return True
    except cv2.error:
        return False


def _shown(image: np.ndarray) -> bool:
    """Show an image; return False after the user pressed q or Escape or closed the window."""
    cv2.imshow(WINDOW, np.ascontiguousarray(image[..., ::-1]))
    if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
        with suppress(cv2.error):
            cv2.destroyWindow(WINDOW)
        return False
    return cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1


class TrackColors:
    """Matcher that keeps the color of an object from frame to frame, by ids for `draw(color_ids=...)`.

    Objects of two frames are matched if they have the same class and their boxes overlap (IoU >= 0.3).
    """

    def __init__(self) -> None:
        self._boxes, self._labels, self._ids = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)
        self._next = 0

    def update(self, result: Result) -> np.ndarray:
        """Match the N instances of the next frame; return their ids (N,)."""
        assert result.instances is not None
        boxes, labels = result.instances.boxes, result.instances.labels
        overlap = _box_iou(boxes, self._boxes) * (labels[:, None] == self._labels[None])
        ids = np.full(len(boxes), -1)
        for new, old in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[new, old] >= 0.3:
                ids[new] = self._ids[old]
        unmatched = np.flatnonzero(ids < 0)
        ids[unmatched] = self._next + np.arange(len(unmatched))
        self._next += len(unmatched)
        self._boxes, self._labels, self._ids = boxes, labels, ids
        return ids


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the IoU (N, M) of XYXY boxes (N, 4) and (M, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    return intersection / np.maximum(areas[0][:, None] + areas[1][None] - intersection, 1e-9)
