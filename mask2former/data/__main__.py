"""`python -m mask2former.data check NAME`: check a dataset before training on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..utils.failures import run_program
from .inspect_command import UnknownDatasetError, check_registered


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 1 when files are missing or broken or the dataset cannot be read, or 2 for a wrong command line.
    """
    return run_program(_parser(), _check, argv, mistake=1)


def _check(args: argparse.Namespace) -> int:
    if args.samples and not args.output:
        raise ValueError("--samples has no effect without --output")
    args.samples = args.samples or 12
    names = ("root", "config_file", "output", "samples", "limit", "workers")
    try:
        return check_registered(args.name, **{name: getattr(args, name) for name in names})
    except UnknownDatasetError as error:
        _parser().error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mask2former.data")
    commands = parser.add_subparsers(dest="command", required=True)
    text = (
        "Read every image and annotation of a dataset; report counts, sizes, how often each class occurs, and every "
        "missing or broken file. The exit status is 1 if there is any."
    )
    check = commands.add_parser("check", help="check a dataset", description=text)
    check.add_argument("name", help="registered name, for example coco_2017_val_panoptic_with_sem_seg")
    check.add_argument(
        "--root", help="directory that holds the datasets; default: DETECTRON2_DATASETS, else ./datasets"
    )
    check.add_argument("--config-file", help="configuration whose DATASETS keys describe custom datasets")
    check.add_argument("--output", help="also draw annotated images on a contact sheet, for example sheet.jpg")
    check.add_argument("--samples", type=_positive, help="images on the sheet (default: 12)")
    check.add_argument("--limit", type=_positive, help="check at most this many records, evenly spread")
    check.add_argument("--workers", type=_positive, help="worker processes; default: one per core, at most 16")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
