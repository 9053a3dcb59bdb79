"""A video or a camera segmented image by image: colors follow the objects, but they get no numbers."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..result_files import CocoDocument, write_image
from ..results import Result
from ..segmenter import Segmenter
from ..video.reader import Frame, FrameSource
from ..video.results import refuse_input
from ..video.writer import VideoWriter, output_lock
from .arguments import DRAWING, LABELS, NOTHING_DRAWN, TRACKING, rules_of
from .camera import Camera, has_windows, show
from .outputs import main_task
from .parser import refuse_given
from .segment_images import image_options
from .text import print_files
from .track_colors import TrackColors
from .video_files import VideoTargets, video_targets


def segment_frames(segment: Segmenter, source: FrameSource | Camera, args: argparse.Namespace) -> int:
    """Segment each frame by itself, with matched colors from frame to frame; return the exit status.

    After Ctrl-C the frames so far are kept.

    Raises:
        ValueError: --output or --save does not fit, or no frame can be read.
    """
    refuse_given(args, TRACKING, "on a video that is segmented image by image; tracking has it: --task video, track")
    camera = isinstance(source, Camera)
    if camera and args.output is None and args.save is None and not getattr(args, "save_frames", False):
        targets = VideoTargets(Path(), None, None)  # shown in a window
    else:
        targets = video_targets(args, source.name, None if isinstance(source, Camera) else source)
    with output_lock(targets.video) if targets.video else contextlib.nullcontext():
        return _segment_to_files(segment, source, args, targets)


def _segment_to_files(
    segment: Segmenter, source: FrameSource | Camera, args: argparse.Namespace, targets: VideoTargets
) -> int:
    visible = isinstance(source, Camera) and targets.video is None and has_windows()
    files = _FrameFiles(segment, source, args, targets)
    if targets.video is None and files.images is None and not visible:
        refuse_given(args, DRAWING, NOTHING_DRAWN)
    if targets.video is None and targets.document is None and args.save is None and not visible:
        raise ValueError("this OpenCV build cannot open a window; give --output FILE.mp4, or install opencv-python")
    options = rules_of(segment, args) | image_options(args)
    if args.min_size:
        options["min_size"] = args.min_size
    started, keep = time.perf_counter(), False
    try:
        with tqdm(total=source.length, unit="frame", mininterval=0.5) as progress:
            for frame in source.read():
                image = files.add(frame, segment(frame.image, **options), draw=visible)
                if visible and image is not None and not show(image):
                    break
                progress.update()
        keep = True
    except KeyboardInterrupt:
        keep = True
        print("interrupted: the frames so far are kept", file=sys.stderr)
    finally:
        files.close(keep)  # after an error, the video of an earlier run is left unchanged
    if not files.count:
        raise ValueError(f"{source.name}: no frame could be read")
    written = files.finish()
    rate = files.count / (time.perf_counter() - started)
    print(f"{files.count} frames of {source.name}, {rate:.2f} frames/s")
    print_files(written, targets.directory)
    return 1 if source.damaged else 0


class _FrameFiles:
    """The files of a video whose frames come one by one."""

    def __init__(
        self, segment: Segmenter, source: FrameSource | Camera, args: argparse.Namespace, targets: VideoTargets
    ) -> None:
        self._source, self._targets = source, targets
        self._sound = None if isinstance(source, Camera) else source
        self._drawing: dict[str, Any] = {"labels": LABELS[args.labels], "scale": args.scale or 1.0}
        self._colors = TrackColors()
        self._coco = CocoDocument(segment.classes) if targets.document else None
        self.images = targets.directory / "frames" if getattr(args, "save_frames", False) else None
        self._masks = targets.directory / "masks" if args.save and "masks" in args.save else None
        if self._sound is not None:
            refuse_input(self._sound, targets.video, self._masks, self.images)
        self._writer: VideoWriter | None = None
        self.count = 0

    def add(self, frame: Frame, result: Result, draw: bool = False) -> np.ndarray | None:
        """Write a frame; return the drawn image (H, W, 3) uint8 RGB if it is written or `draw` is set."""
        image, task = None, main_task(result)
        if self._targets.video or self.images or draw:
            ids = self._colors.update(result).tolist() if result.instances is not None else None
            image = np.asarray(result.draw(task, color_ids=ids, **self._drawing))
        if self._targets.video and image is not None:
            self._writer = self._writer or VideoWriter(self._targets.video, self._source.rate, self._sound)
            self._writer.add(image, frame.seconds)
        if self.images and image is not None:
            write_image(self.images / f"{frame.index:06d}.jpg", Image.fromarray(image))
        name = f"{self._source.name}#{frame.index:06d}"
        if self._coco is not None:
            self._coco.add(result.to_coco(task=task), result.size, name)
        if self._masks is not None:
            result.save_masks(self._masks, name.replace("#", "_"))
        self.count += 1
        return image

    def close(self, keep: bool) -> None:
        """End the video file, which is discarded unless `keep` is set."""
        if self._writer is not None:
            self._writer.close(keep=keep)

    def finish(self) -> list[Path]:
        """Write the JSON file; return all files and directories that were written."""
        written = [self._targets.video] if self._targets.video else []
        if self._coco is not None and self._targets.document is not None:
            written.append(self._coco.save(self._targets.document))
        return written + [directory for directory in (self.images, self._masks) if directory]
