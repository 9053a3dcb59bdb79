#!/usr/bin/env python3
"""Prepare images and label maps of COCO-Stuff 10k (v1.1) for coco_2017_{train,test}_stuff_10k_sem_seg.

Reads   <root>/coco/coco_stuff_10k/imageLists/{train,test}.txt      names without extension
        <root>/coco/coco_stuff_10k/annotations/NAME.mat             variable S: 0 = void, 1-182 = classes
        <root>/coco/coco_stuff_10k/images/NAME.jpg
Writes  <root>/coco/coco_stuff_10k/annotations_detectron2/{train,test}/NAME.png   0-170 = classes, 255 = void
        <root>/coco/coco_stuff_10k/images_detectron2/{train,test}/NAME.jpg        hard links or copies

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
from scipy.io import loadmat

from mask2former.data import BadRecordError
from mask2former.data.datasets.categories import class_table, index_by_id
from mask2former.data.image_files import opened_image
from mask2former.data.preparation.cli import argument_parser, run, source_files
from mask2former.data.preparation.segments import relabel
from mask2former.data.preparation.work import Outcome, Report, convert_all, ensure_image, place_image

VOID = 255
LAYOUT = """\
<root>/coco/coco_stuff_10k/
  imageLists/{train,test}.txt
  annotations/                    COCO_train2014_000000000077.mat
  images/                         COCO_train2014_000000000077.jpg"""


def read_map(path: Path) -> np.ndarray:
    """Read the label map of a .mat file, int64 (H, W).

    Raises:
        BadRecordError: the file is broken or has no S, or a label is not one of COCO-Stuff.
        FileNotFoundError: no such file.
    """
    try:
        labels = np.asarray(loadmat(path, variable_names=["S"])["S"])
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # scipy raises many types on a broken file
        raise BadRecordError(path, f"cannot be read as a Matlab file with a label map S: {error}") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise BadRecordError(path, f"S is {labels.dtype} of shape {labels.shape}, but must be a map (H, W) of integers")
    unknown = set(np.unique(labels).tolist()) - index_by_id(class_table("coco_stuff_10k")).keys() - {0}
    if unknown:
        raise BadRecordError(path, f"S has labels {sorted(unknown)}, which are not classes of COCO-Stuff 10k v1.1")
    return labels.astype(np.int64)


def convert(base: Path, split: str, overwrite: bool, name: str) -> Outcome:
    """Link one image and write its label map."""
    labels = read_map(base / "annotations" / f"{name}.mat")
    path = base / "images" / f"{name}.jpg"
    with opened_image(path) as image:
        if image.size != labels.shape[::-1]:
            raise BadRecordError(
                path, f"is {image.size[::-1]} pixels (height, width), but its label map is {labels.shape}"
            )
    place_image(path, base / "images_detectron2" / split / path.name, overwrite)
    indices = relabel(labels, index_by_id(class_table("coco_stuff_10k")), VOID)
    target = base / "annotations_detectron2" / split / f"{name}.png"
    return Outcome(ensure_image(target, indices, overwrite))


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "coco" / "coco_stuff_10k"
    for split in args.splits:
        (listing,) = source_files(base / "imageLists", f"{split}.txt", LAYOUT)
        names = listing.read_text(encoding="utf-8").split()
        invalid = [name for name in names if Path(name).name != name]
        if invalid:
            raise BadRecordError(listing, f"{invalid[0]!r} is not the name of an image without extension")
        target = base / "annotations_detectron2" / split
        yield convert_all(
            partial(convert, base, split, args.overwrite), names, args.workers, f"stuff_10k_{split}", target
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=["train", "test"]), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
