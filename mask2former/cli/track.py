"""`mask2former track`: follow the objects of a video, and write overlays, tracks and counts."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..structures.task import Task
from . import arguments
from .inputs import similar
from .track_objects import open_video, track_objects

HELP = "follow the objects of a video"
DESCRIPTION = """Follow the objects of a video: each keeps its number, color and class.

A video model sees several frames together; a model of images goes frame by frame. Written are NAME_segmented.mp4 and
results.json (YouTube-VIS format). A video may have any length. A run that was stopped continues when the same command
is repeated.

examples:
  mask2former track clip.mp4                                     the included model, to output/track/
  mask2former track clip.mp4 --model ytvis2019-swin-t --output out/
  mask2former track clip.mp4 --counts counts.csv                 how many objects each frame shows
  mask2former track clip.mp4 --start 1:30 --end 2:00 --every 5   every fifth frame of half a minute
  mask2former track frames/ --output clip_tracks.mp4             a directory of frames
"""
DEFAULT_OUTPUT = "output/track"
DEFAULT_SAVE = ("overlay", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    inputs = parser.add_argument_group("input")
    inputs.add_argument(
        "input", nargs="+", metavar="VIDEO", help="a video file, a directory of frames, or images in their order"
    )
    arguments.add_part(inputs)
    arguments.add_model(parser.add_argument_group("model"), ())
    parser.set_defaults(task=str(Task.VIDEO))
    tracking = parser.add_argument_group("tracking")
    arguments.add_threshold(tracking)
    add_tracking(tracking)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        metavar="PATH",
        help=f"directory, or one file: a video, or .json (default: {DEFAULT_OUTPUT})",
    )
    output.add_argument(
        "--save",
        nargs="+",
        choices=["overlay", "json", "masks"],
        help=f"what to write into the directory (default: {' '.join(DEFAULT_SAVE)})",
    )
    output.add_argument("--counts", metavar="FILE.csv", help="also write how many objects each frame shows")
    output.add_argument("--tracks", metavar="FILE.csv", help="also write a row for each track")
    add_frames(output)
    arguments.add_drawing(output)
    arguments.add_opts(parser)


def add_tracking(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of windows."""
    group.add_argument("--online", action="store_true", help="track objects frame by frame (image models always do)")
    group.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="frames that the network processes together (default: TEST.WINDOW_FRAMES, 24 if that is 0)",
    )
    group.add_argument(
        "--overlap",
        type=int,
        metavar="N",
        help="frames that two windows share (default: TEST.WINDOW_OVERLAP, 6 if TEST.WINDOW_FRAMES is 0)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="objects per window (default: TEST.DETECTIONS_PER_VIDEO, for image models TEST.DETECTIONS_PER_IMAGE)",
    )


def add_frames(group: argparse._ArgumentGroup) -> None:
    """Add --save-frames."""
    group.add_argument(
        "--save-frames", action="store_true", help="also write each drawn frame, as frames/000000.jpg ..."
    )


def run(args: argparse.Namespace) -> int:
    """Track the objects; return the exit status, 1 if the video is damaged.

    Raises:
        FileNotFoundError, ValueError: no model, no video, or arguments that do not fit.
    """
    args.default_output, args.default_save = DEFAULT_OUTPUT, DEFAULT_SAVE
    for name in args.input:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"{name} does not exist.{similar(path)}")
    segment = arguments.load_segmenter(args)
    return track_objects(segment, open_video(args.input), args)
