#!/usr/bin/env python3
"""Prepare the label maps of COCO on which coco_2017_{train,val}_panoptic_with_sem_seg are evaluated.

Reads   <root>/coco/annotations/panoptic_{train,val}2017.json, <root>/coco/panoptic_{train,val}2017/*.png
Writes  <root>/coco/panoptic_semseg_{train,val}2017/*.png    0-132 = classes, things first; 255 = void

prepare_coco_panoptic_zips.py unpacks the files that this script reads. A second run writes only missing or broken
files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package


from mask2former.data import BadRecordError
from mask2former.data.datasets.categories import index_by_id
from mask2former.data.datasets.coco import coco_categories
from mask2former.data.image_io import read_panoptic_png
from mask2former.data.preparation.cli import argument_parser, run, source_files
from mask2former.data.preparation.segments import relabel
from mask2former.data.preparation.work import Outcome, Report, convert_all, ensure_image
from mask2former.utils.file_io import read_json_object

VOID = 255
LAYOUT = """\
<root>/coco/
  annotations/panoptic_{train,val}2017.json
  panoptic_{train,val}2017/                    000000000139.png"""


def convert(json_file: Path, source: Path, target: Path, overwrite: bool, annotation: dict[str, Any]) -> Outcome:
    """Write the label map of one image."""
    try:
        name = annotation["file_name"]
        classes = index_by_id(coco_categories())
        table = {segment["id"]: classes[segment["category_id"]] for segment in annotation["segments_info"]}
    except KeyError as error:
        where = str(annotation.get("file_name", annotation.get("image_id")))
        raise BadRecordError(json_file, f"{error.args[0]!r} is missing, or not a category of COCO", where) from error
    ids = read_panoptic_png(str(source / name))
    return Outcome(ensure_image(target / name, relabel(ids, table, VOID), overwrite))


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "coco"
    for split in args.splits:
        (json_file,) = source_files(base / "annotations", f"panoptic_{split}2017.json", LAYOUT)
        source, target = base / f"panoptic_{split}2017", base / f"panoptic_semseg_{split}2017"
        source_files(source, "*.png", LAYOUT)
        annotations = read_json_object(str(json_file), lists=("annotations",))["annotations"]
        task = partial(convert, json_file, source, target, args.overwrite)
        yield convert_all(task, annotations, args.workers, f"panoptic_semseg_{split}2017", target)


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=["val", "train"]), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
