"""`python -m mask2former.data check NAME`: check a dataset before training on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from detectron2.data import DatasetCatalog

from ..config import load_config
from ..utils.hints import did_you_mean
from . import register_all, register_from_config
from .inspect import check_dataset
from .inspect_report import contact_sheet, format_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 1 when files are missing or broken or the dataset cannot be read, or 2 for a wrong command line.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        register_all(args.root)
        if args.config_file:
            register_from_config(load_config(args.config_file), [args.name])
        if args.name not in DatasetCatalog:
            hint = did_you_mean(args.name, DatasetCatalog.keys(), 3)
            parser.error(f"no dataset {args.name!r} is registered.{hint} Custom datasets need --config-file.")
        report = check_dataset(args.name, args.limit, args.workers)
        sys.stdout.write(format_report(report) + "\n")
        if args.output:
            contact_sheet(report, args.samples).save(args.output)
            sys.stdout.write(f"Contact sheet: {args.output}\n")
    except BrokenProcessPool:
        sys.stderr.write(f"{args.name}: a worker process died, perhaps out of memory; try --workers 1\n")
        return 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{args.name}: {error}\n")
        return 1
    return 1 if report.problems else 0


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
    check.add_argument("--samples", type=_positive, default=12, help="images on the sheet (default: %(default)s)")
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
