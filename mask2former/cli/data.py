"""`mask2former data`: make datasets. `data shapes` draws the shapes world."""

from __future__ import annotations

import argparse
import math
import re
import time
from typing import TYPE_CHECKING

from .parser import not_negative, path, positive, refuse_given

if TYPE_CHECKING:
    from ..data.shapes import Options

HELP = "make a dataset: the shapes world, with exact masks"
_SHAPES = """Make a dataset to train and test on, without a download and without a license.

shapes draws images and clips of things (disk, star, ring, letter, ...) that overlap and cast shadows on stuff (sky,
grass, water, brick, sand), and writes COCO instance, COCO panoptic, semantic and YouTube-VIS files. The same seed gives
the same dataset, with any number of workers; the same command completes a directory that was interrupted.

examples:
  mask2former data shapes datasets/shapes                     # default: 2000 + 200 images, 200 + 20 clips
  mask2former data shapes small/ --images 300 --size 96 --objects 2-8 --clips 0
  mask2former data shapes --preview sheet.jpg                 # only a contact sheet of images and masks
  mask2former check datasets/shapes
  mask2former train --config-file configs/shapes/panoptic_efficientnet_lite0.yaml
"""
DESCRIPTION = f"{_SHAPES}\nmask2former data shapes --help explains its options.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    shapes = kinds.add_parser("shapes", help="images and clips of the shapes world", description=_SHAPES)
    shapes.add_argument("out", metavar="OUT", nargs="?", type=path, help="directory of the dataset")
    shapes.add_argument("--images", metavar="N", type=not_negative, help="training images (default: 2000)")
    shapes.add_argument(
        "--val", metavar="N", type=not_negative, help="validation images (default: a tenth of --images)"
    )
    shapes.add_argument(
        "--clips",
        metavar="N",
        type=not_negative,
        help="training clips (default: a tenth of --images)",
    )
    shapes.add_argument(
        "--val-clips", metavar="N", type=not_negative, help="validation clips (default: a tenth of --clips)"
    )
    shapes.add_argument("--frames", metavar="N", type=positive, help="frames of a clip (default: 12)")
    shapes.add_argument("--size", metavar="HxW", type=_size, help="height and width of images (default: 256x256)")
    shapes.add_argument("--objects", metavar="A-B", type=_range, help="things in an image (default: 2-60)")
    shapes.add_argument(
        "--classes", metavar="NAMES", type=_names, help="draw only these, as disk,star,sky,sand (default: all)"
    )
    shapes.add_argument(
        "--seed", metavar="N", type=not_negative, default=0, help="of everything that is drawn (default: 0)"
    )
    shapes.add_argument("--workers", metavar="N", type=positive, help="worker processes (default: one per core)")
    shapes.add_argument(
        "--preview", metavar="FILE", type=path, help="draw a contact sheet of images and masks, as sheet.jpg"
    )
    shapes.set_defaults(work=_run_shapes)


def run(args: argparse.Namespace) -> int:
    """Make the dataset; return 0.

    Raises:
        ValueError: options that contradict each other or the files in OUT.
        OSError: a file cannot be written.
    """
    args.work(args)
    return 0


def _run_shapes(args: argparse.Namespace) -> None:
    from ..data.shapes import Options

    given = {"size": args.size, "objects": args.objects, "classes": args.classes}
    options = Options(**{name: value for name, value in given.items() if value is not None})
    if args.out is None and args.preview is None:
        raise ValueError("where to? Give OUT, a directory for the dataset, or --preview FILE for a contact sheet only")
    if args.preview is not None:
        from ..data.shapes.preview import check_preview, write_preview

        check_preview(args.preview)  # before minutes of drawing
    if args.out is None:
        refuse_given(args, ("images", "val", "clips", "val_clips", "frames", "workers"), "without OUT")
    else:
        _write(args, options)
    if args.preview is not None:
        print(f"Contact sheet: {write_preview(args.preview, options, args.seed)}")


def _write(args: argparse.Namespace, options: Options) -> None:
    from ..data.shapes.files import Recipe, write_dataset

    images = 2000 if args.images is None else args.images
    val = math.ceil(images / 10) if args.val is None else args.val
    clips = math.ceil(images / 10) if args.clips is None else args.clips
    val_clips = math.ceil(clips / 10) if args.val_clips is None else args.val_clips
    if not clips + val_clips:
        refuse_given(args, ("frames",), "without clips")
    recipe = Recipe(
        options,
        args.seed,
        images={"train": images, "val": val},
        clips={"train": clips, "val": val_clips},
        frames=args.frames or 12,
    )
    started = time.monotonic()
    for line in write_dataset(args.out, recipe, args.workers):
        print(line)
    look = f" Look at it: mask2former check {args.out} --output sheet.jpg" if images + val else ""  # it reads no clips
    print(f"Written in {time.monotonic() - started:.0f} s.{look}")


# ------------------------------------------------------------------ types of arguments
def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 256x320 (height x width) or 256")
    return int(match[1]), int(match[2] or match[1])


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 2-60, or one number")
    return int(match[1]), int(match[2] or match[1])


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
