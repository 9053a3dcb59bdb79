"""`mask2former check`: look for mistakes in training data before training on it."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ..errors import BadRecordError
from .parser import refuse_given

HELP = "look for mistakes in a dataset before training on it"
DESCRIPTION = """Look for mistakes in training data before training on it.

The format is found by itself: COCO (also Roboflow), images with label maps or binary masks (also Cellpose, StarDist,
Data Science Bowl), YOLO segmentation, Pascal VOC masks, LabelMe, CVAT for images, Label Studio, Hugging Face datasets.
Every image and annotation is read. Counts per split and class, sizes, and the number of queries that the images need
are printed, then what was decided, and what would train badly. The exit status is 1 if anything would.

examples:
  mask2former check cells/                              # a directory, or one annotation file
  mask2former check cells/ --output sheet.jpg           # also draw annotated images
  mask2former check cells/ --format yolo
  mask2former check cells/ --write cells_coco/          # also write COCO JSON of each split
  mask2former check coco_2017_val_panoptic              # a registered dataset
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", metavar="DATA", help="directory, annotation file, or name of a registered dataset")
    parser.add_argument("--format", metavar="F", help="format of the data (default: find it)")
    parser.add_argument("--output", metavar="FILE", help="also draw annotated images on a contact sheet, as sheet.jpg")
    parser.add_argument("--samples", metavar="N", type=_positive, help="images on it (default: 12)")
    parser.add_argument("--limit", metavar="N", type=_positive, help="read at most so many images, evenly spread")
    parser.add_argument("--workers", metavar="N", type=_positive, help="worker processes (default: one per core)")
    parser.add_argument(
        "--queries",
        metavar="N",
        type=_positive,
        help="queries of the model, the most objects in an image (default: 100)",
    )
    parser.add_argument("--no-negatives", action="store_true", help="leave out images without objects")
    parser.add_argument("--image-root", metavar="DIR", help="where file names of a COCO JSON start from")
    parser.add_argument("--write", metavar="DIR", help="write COCO JSON files, one for each split, to this directory")
    parser.add_argument("--root", metavar="DIR", help="directory of the registered datasets (DETECTRON2_DATASETS)")
    parser.add_argument("--config-file", metavar="FILE", help="config whose DATASETS keys describe custom datasets")


def run(args: argparse.Namespace) -> int:
    """Check the data; return 0, or 1 when something would train badly.

    Raises:
        ValueError: unknown format or dataset.
        FileNotFoundError: the data does not exist.
    """
    if args.output is None:
        refuse_given(args, ("samples",), "without --output")
    args.samples = args.samples or 12
    try:
        if Path(args.data).expanduser().exists() and not args.config_file:
            return _check_files(args)
        return _check_registered(args)
    except BrokenProcessPool:
        raise ValueError(f"{args.data}: a worker process died, perhaps out of memory; try --workers 1") from None


def _check_files(args: argparse.Namespace) -> int:
    from ..data.formats import load_data, write_coco
    from ..data.inspect_command import check_sheet_name
    from ..data.inspect_report import contact_sheet
    from ..data.inspect_training import DEFAULT_QUERIES, check_training_data, format_training_report

    if args.write and (Path(args.write) / "annotations").exists():  # before the data is read
        raise ValueError(
            f"{Path(args.write) / 'annotations'} exists, so nothing is written there; choose another --write"
        )
    check_sheet_name(args.output)
    problems: list[BadRecordError] = []
    if args.root:
        raise ValueError("--root is for registered datasets, not for directories and files")
    options = {"image_root": Path(args.image_root).absolute()} if args.image_root else {}
    try:
        splits = load_data(
            args.data, args.format or "auto", problems=problems, negatives=not args.no_negatives, **options
        )
    except BadRecordError as error:  # of the data as a whole
        splits = {}
        problems.append(error)
    report = check_training_data(
        splits, args.data, problems, queries=args.queries or DEFAULT_QUERIES, limit=args.limit, workers=args.workers
    )
    print(format_training_report(report))
    usable = any(not inspection.problems for inspection in report.dataset.inspections)
    if args.output and usable:
        contact_sheet(report.dataset, args.samples).save(args.output)
        print(f"Contact sheet: {args.output}")
    elif args.output:
        print("No contact sheet: no image can be drawn.", file=sys.stderr)
    if args.write:
        for split, data in splits.items():
            print(f"Written: {write_coco(data, Path(args.write) / 'annotations' / f'{split}.json')}")
    return 1 if report.errors else 0


def _check_registered(args: argparse.Namespace) -> int:
    from ..data.inspect_command import UnknownDatasetError, check_registered

    given = ("format", "queries", "no_negatives", "image_root", "write")
    ignored = next((name for name in given if getattr(args, name)), None)
    if ignored is not None:
        raise ValueError(f"--{ignored.replace('_', '-')} is for directories and files, not for registered datasets")
    names = ("root", "config_file", "output", "samples", "limit", "workers")
    try:
        return check_registered(args.data, **{name: getattr(args, name) for name in names})
    except UnknownDatasetError as error:
        raise FileNotFoundError(f"{args.data!r} is neither a file nor a directory, and {error}") from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
