"""`mask2former predict`: segment images, and write overlays, a table of objects, COCO JSON and label maps."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from ..video.reader import open_frames
from ..video.selection import select_frames
from . import arguments
from .camera import Camera
from .frames import segment_frames
from .inputs import collect
from .label_files import FORMATS
from .outputs import KINDS
from .parser import fraction, length, not_negative, refuse_given
from .segment_images import segment_images

HELP = "segment images: overlays, a table of objects, COCO JSON, label maps"
DESCRIPTION = """Segment images and write what was found.

Into a directory go one overlay for each image, results.json (COCO format, all images) and objects.csv (one row for
each object); the counts are printed. All of them show the same objects. How many are found depends on the rules that
are saved with the model; the arguments below 'objects' change them for one run.

examples:
  mask2former predict cells/ --output out/                    every image of a directory, with the included model
  mask2former predict 'plate/*.tif' --save csv                only the table
  mask2former predict photo.jpg --model coco-panoptic-swin-t  a published model (mask2former models lists them)
  mask2former predict scan.tif --tile auto                    a large image with many small objects
  mask2former predict new/ --model output/cells --save-as labelme   labels to correct, and to train on again
  mask2former predict cells/ --model cells.onnx               a file of mask2former export, by onnxruntime
"""
DEFAULT_OUTPUT = "output/predict"
DEFAULT_SAVE = ("overlay", "json", "csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    inputs = parser.add_argument_group("input")
    inputs.add_argument(
        "input",
        nargs="*",
        metavar="IMAGES",
        help="images, directories, patterns such as 'cells/*.png', or one video, which is segmented frame by frame",
    )
    inputs.add_argument("--webcam", nargs="?", type=int, const=0, metavar="N", help="camera (default: number 0)")
    arguments.add_part(inputs)
    inputs.add_argument(
        "--page", type=_page, metavar="N|all", help="page of a stack, from 0, or all of them (default: the first)"
    )
    inputs.add_argument(
        "--channels",
        type=_channels,
        metavar="LIST",
        help="channels of a multi-channel image, from 0, such as 2 or 0,1,2 (default: the image's color)",
    )
    inputs.add_argument(
        "--stretch",
        nargs="?",
        const="percentile",
        type=_stretch,
        metavar="HOW",
        help="stretch values to 8 bits: percentile, minmax, or two values such as 100,4000 (without HOW: percentile; "
        "default: by the type of the values)",
    )
    arguments.add_model(parser.add_argument_group("model"))
    arguments.add_rules(parser.add_argument_group("objects (default: what the model's config says)"))
    add_tiles(parser.add_argument_group("large images"))
    add_output(parser.add_argument_group("output"))
    arguments.add_opts(parser)


def add_tiles(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of tiles."""
    group.add_argument(
        "--tile",
        type=_tile,
        metavar="auto|off|N",
        help="segment tiles of N pixels and join them; auto: where the image would be shrunk too much, or holds more "
        "objects than the model has queries (default: what the model's config says)",
    )
    group.add_argument(
        "--tile-overlap",
        type=fraction,
        metavar="F",
        help="fraction of a tile that its neighbors share (default: what the model's config says)",
    )


def add_output(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of the output."""
    group.add_argument(
        "--output",
        metavar="PATH",
        help=f"directory, or one file: an image, .json or .csv (default: {DEFAULT_OUTPUT})",
    )
    group.add_argument(
        "--save",
        nargs="+",
        choices=KINDS,
        help=f"what to write into the directory (default: {' '.join(DEFAULT_SAVE)})",
    )
    group.add_argument(
        "--save-as",
        nargs="+",
        action="extend",
        type=_label_formats,
        metavar="FORMAT",
        help=f"also write the objects as labels to correct and train on: {', '.join(FORMATS)}",
    )
    group.add_argument(
        "--intensity",
        action="store_true",
        help="columns with mean, min, max, standard deviation and sum of the values in each object, of the 8 bits that "
        "the model sees (for others: result.to_rows(intensity=array) in Python)",
    )
    group.add_argument(
        "--pixel-size",
        type=length,
        metavar="UM",
        help="micrometers of a pixel: columns of lengths and areas in micrometers, too (default: pixels only)",
    )
    arguments.add_drawing(group)


def run(args: argparse.Namespace) -> int:
    """Segment the images; return the exit status, 1 if any could not be segmented.

    Raises:
        FileNotFoundError, ValueError: no model, no image, or arguments that do not fit.
    """
    args.default_output, args.default_save = DEFAULT_OUTPUT, DEFAULT_SAVE
    args.save_as = list(dict.fromkeys(name for names in args.save_as or () for name in names))
    if args.webcam is not None and args.input:
        raise ValueError("give images or --webcam, not both")
    if args.webcam is None and not args.input:
        raise ValueError("give images, directories or patterns, for example: mask2former predict cells/ --output out/")
    if args.tile == "off":
        refuse_given(args, ("tile_overlap",), "with --tile off")
    video = [
        name for name in args.input if Path(name).suffix.lower() in arguments.VIDEO_SUFFIXES and Path(name).is_file()
    ]
    if args.webcam is not None or video:
        return _frames(args, video)
    if args.start or args.end or args.every:
        raise ValueError("--start, --end and --every select a part of a video, and there is none")
    files, problems = collect(args.input)
    if not files:
        raise ValueError("\nerror: ".join(problems))
    if arguments.is_exported(args):
        return segment_images(arguments.load_exported(args), args, files, problems)
    segment = arguments.load_segmenter(args)
    if arguments.is_video_model(segment):
        raise ValueError(_for_videos(args))
    return segment_images(segment, args, files, problems)


def _for_videos(args: argparse.Namespace) -> str:
    name = arguments.model_name(args)
    return f"{name} is a video model: use mask2former track VIDEO" + (f" --model {name}" if args.model else "")


def _frames(args: argparse.Namespace, video: list[str]) -> int:
    """Segment a video or a camera frame by frame."""
    if arguments.is_exported(args):
        raise ValueError(f"--model {args.model} segments images, not videos")
    if video and len(args.input) > 1:
        raise ValueError(f"give one video, or images: {', '.join(args.input[:3])}")
    if args.save_as:
        raise ValueError("--save-as writes labels of images, not of videos; drop it")
    if args.save and "csv" in args.save:
        raise ValueError("--save csv is for images; of a video, mask2former track VIDEO --counts FILE.csv counts")
    refuse_given(args, ("intensity", "pixel_size", "page"), "on videos: it is for images, not for videos")
    part = (args.start, args.end, args.every)
    if args.webcam is not None and any(part):
        raise ValueError("--start, --end and --every select a part of a video file, not of a camera")
    args.default_save = ("overlay",)
    segment = arguments.load_segmenter(args)
    if arguments.is_video_model(segment):
        raise ValueError(_for_videos(args))
    if args.webcam is not None:
        return segment_frames(segment, Camera(args.webcam), args)
    source = select_frames(open_frames(video[0], Path()), args.start, args.end, args.every or 1)
    return segment_frames(segment, source, args)


# ------------------------------------------------------------------ types of arguments
def _tile(text: str) -> int | str:
    if text in ("auto", "off"):
        return text
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be auto, off or a number of pixels, not {text}")
    return value


def _page(text: str) -> int | str:
    return text if text == "all" else not_negative(text)


def _channels(text: str) -> int | tuple[int, ...]:
    values = tuple(not_negative(part) for part in text.split(","))
    return values[0] if len(values) == 1 else values


def _stretch(text: str) -> str | tuple[float, float]:
    if text in ("percentile", "minmax"):
        return text
    low, comma, high = text.partition(",")
    with contextlib.suppress(ValueError):
        if comma and float(low) < float(high):
            return float(low), float(high)
    raise argparse.ArgumentTypeError(f"must be percentile, minmax, or two values such as 100,4000, not {text}")


def _label_formats(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(FORMATS)}, not {text}")
    return names
