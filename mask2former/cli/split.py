"""`mask2former split`: divide training data into training, validation and test parts."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.formats import CocoData

HELP = "divide a dataset into training and validation"
DESCRIPTION = """Divide training data of any format that 'mask2former check' knows into training and validation.

A COCO JSON file is written for each part, OUT/annotations/train.json and so on; the images stay where they are, or are
copied with --copy. The same data and seed give the same parts. Rare classes are dealt first, so that each part has its
share of every class, and identical images stay together. Images of one patient, slide or video are alike: keep them
together with --group-by, or the results on the validation part are too good.

examples:
  mask2former split cells/ cells_split/                            # 90 % training, 10 % validation
  mask2former split cells/ cells_split/ --val 0.15 --test 0.15 --copy
  mask2former split cells/ cells_split/ --group-by parent          # directories stay together
  mask2former split cells/ cells_split/ --group-by '^(patient[0-9]+)_'
  mask2former train --data cells_split/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", metavar="DATA", help="directory or annotation file")
    parser.add_argument("out", metavar="OUT", help="directory for the parts; it must be new or empty")
    parser.add_argument("--val", metavar="F", type=_fraction, default=0.1, help="part for validation (default: 0.1)")
    parser.add_argument("--test", metavar="F", type=_fraction, default=0.0, help="part for a final test (default: 0)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the random order (default: 0)")
    parser.add_argument(
        "--group-by", metavar="WHAT", help="'parent' (directory), or a regular expression for the file name (group 1)"
    )
    parser.add_argument("--copy", action="store_true", help="copy the images to OUT/images")
    parser.add_argument("--format", metavar="F", default="auto", help="format of the data (default: find it)")
    parser.add_argument("--no-negatives", action="store_true", help="leave out images without objects")


def run(args: argparse.Namespace) -> int:
    """Divide the data; return 0.

    Raises:
        ValueError: the data is malformed or already divided, or OUT is not empty.
        FileNotFoundError: the data does not exist.
    """
    from ..data.formats import load_data, split, write_coco

    out = Path(args.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty directory; choose another one")
    splits = load_data(args.data, args.format, negatives=not args.no_negatives)
    if len(splits) > 1:
        raise ValueError(f"{args.data} is divided already, into {', '.join(splits)}; pass one annotation file of it")
    fractions = {name: value for name, value in (("val", args.val), ("test", args.test)) if value}
    if not fractions:
        raise ValueError("--val and --test are both 0; there is nothing to divide")
    data = next(iter(splits.values()))
    for note in data.notes:
        print(f"note: {note}")
    for name, part in split(data, fractions, args.seed, args.group_by).items():
        if args.copy:
            part = _copied(part, out / "images")
        path = write_coco(part, out / "annotations" / f"{name}.json")
        print(f"{name}: {len(part.content['images'])} images, {len(part.content['annotations'])} objects: {path}")
    return 0


def _copied(part: CocoData, directory: Path) -> CocoData:
    """Copy the images of a part, in their directories, and return it with the new root."""
    from ..data.formats import CocoData

    for image in part.content["images"]:
        target = directory / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part.image_root / image["file_name"], target)
    return CocoData(directory, part.content, part.format, part.notes)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1, not {text}")
    return value
