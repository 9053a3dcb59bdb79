#!/usr/bin/env python3
"""Prepare the instance annotations of ADE20K (100 classes) in COCO's format.

Reads   <root>/ADEChallengeData2016/annotations_instance/{training,validation}/*.png   red = class, green = object
Writes  <root>/ADEChallengeData2016/ade20k_instance_{train,val}.json

Image ids are the file names without extension, category ids the class indices among the 150 of SceneParse150; masks are
RLE. A second run writes only missing or incomplete files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from mask2former.data.datasets.categories import class_table
from mask2former.data.datasets.coco_panoptic import Object
from mask2former.data.preparation.cli import argument_parser, run, source_files
from mask2former.data.preparation.segments import (
    image_record,
    instance_annotation_file,
    instance_records,
    read_ade20k_objects,
)
from mask2former.data.preparation.work import Outcome, Report, Stage, build_annotation_file

SPLIT_DIRECTORIES = {"train": "training", "val": "validation"}
LAYOUT = """\
<root>/ADEChallengeData2016/
  annotations_instance/{training,validation}/    ADE_val_00000001.png, from annotations_instance.tar"""


def convert(source: Path) -> Outcome:
    """Build the entry of one image."""
    keys, objects = read_ade20k_objects(source)
    records = instance_records(source.stem, keys, {key: Object(category, False) for key, category in objects.items()})
    return Outcome(Stage.WRITTEN, (image_record(source.stem, f"{source.stem}.jpg", keys.shape), records))


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "ADEChallengeData2016"
    categories = [{"id": entry["id"], "name": entry["name"]} for entry in class_table("ade20k_instance")]
    for split in args.splits:
        sources = source_files(base / "annotations_instance" / SPLIT_DIRECTORIES[split], "*.png", LAYOUT)
        yield build_annotation_file(
            base / f"ade20k_instance_{split}.json",
            {path.stem: path for path in sources},
            convert,
            partial(instance_annotation_file, categories),
            workers=args.workers,
            overwrite=args.overwrite,
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=list(SPLIT_DIRECTORIES)), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
