#!/usr/bin/env python3
"""Prepare the label maps of ADE20K (SceneParse150) for ade20k_sem_seg_{train,val}.

Reads   <root>/ADEChallengeData2016/annotations/{training,validation}/*.png             0 = void, 1-150 = classes
Writes  <root>/ADEChallengeData2016/annotations_detectron2/{training,validation}/*.png  0-149 = classes, 255 = void

A second run writes only missing or broken files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

import numpy as np

from mask2former.data import BadRecordError
from mask2former.data.image_io import read_label_map
from mask2former.data.preparation.cli import argument_parser, run, source_files
from mask2former.data.preparation.work import Outcome, Report, convert_all, ensure_image

CLASSES = 150
SPLIT_DIRECTORIES = {"train": "training", "val": "validation"}
LAYOUT = """\
<root>/ADEChallengeData2016/
  annotations/{training,validation}/    ADE_val_00000001.png"""


def convert(target: Path, overwrite: bool, source: Path) -> Outcome:
    """Write the label map of one image."""
    labels = read_label_map(str(source))
    if labels.max(initial=0) > CLASSES:
        raise BadRecordError(
            source, f"label {labels.max()} is not in [0, {CLASSES}]; use the annotations of SceneParse150"
        )
    shifted = (labels - 1).astype(np.uint8)  # void: 0 -> 255
    return Outcome(ensure_image(target / source.name, shifted, overwrite))


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "ADEChallengeData2016"
    for split in args.splits:
        sources = source_files(base / "annotations" / SPLIT_DIRECTORIES[split], "*.png", LAYOUT)
        target = base / "annotations_detectron2" / SPLIT_DIRECTORIES[split]
        task = partial(convert, target, args.overwrite)
        yield convert_all(task, sources, args.workers, f"ade20k_sem_seg_{split}", target)


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=list(SPLIT_DIRECTORIES)), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
