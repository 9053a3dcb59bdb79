#!/usr/bin/env python3
"""Prepare images and label maps of the full ADE20K (847 classes) for ade20k_full_sem_seg_{train,val}.

Reads   <root>/ADE20K_2021_17_01/images/ADE/{training,validation}/**/NAME.jpg, NAME_seg.png, NAME.json
Writes  <root>/ADE20K_2021_17_01/images_detectron2/{training,validation}/NAME.jpg        hard links or copies
        <root>/ADE20K_2021_17_01/annotations_detectron2/{training,validation}/NAME.tif   16 bits: 0-846 = classes,
                                                                                         65535 = void
NAME_seg.png has the number of an object's class among the thousands of ADE20K, NAME.json the name of this class.
Classes other than the 847 become void. A second run writes only missing or broken files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

import numpy as np

from mask2former.data import BadRecordError
from mask2former.data.datasets.ade20k import FULL_VOID
from mask2former.data.datasets.categories import class_table
from mask2former.data.image_files import opened_image
from mask2former.data.image_io import read_panoptic_png
from mask2former.data.preparation.cli import argument_parser, find_directory, run, source_files
from mask2former.data.preparation.segments import relabel
from mask2former.data.preparation.work import Outcome, Report, convert_all, ensure_image, place_image
from mask2former.structures.panoptic_ids import id_to_rgb

SPLIT_DIRECTORIES = {"train": "training", "val": "validation"}
SEGMENTATION = "_seg.png"
LAYOUT = """\
<root>/ADE20K_2021_17_01/
  images/ADE/{training,validation}/*/*/    ADE_train_00016869.jpg, ..._seg.png, ....json"""


def class_numbers(pixels: np.ndarray) -> np.ndarray:
    """Return the number of the class (from 1, 0 = none), int32 (H, W), from the ids of a _seg.png: R / 10 * 256 + G."""
    colors = id_to_rgb(pixels).astype(np.int32)
    return colors[..., 0] // 10 * 256 + colors[..., 1]


def class_names(path: Path) -> dict[int, str]:
    """Return the name of each class number in the JSON file of an image.

    Raises:
        BadRecordError: not a JSON file of ADE20K.
        FileNotFoundError: no such file.
    """
    try:
        # Some files are not UTF-8; class names are ASCII.
        objects = json.loads(path.read_text(encoding="latin-1"))["annotation"]["object"]
        objects = [objects] if isinstance(objects, dict) else objects
        return {int(entry["name_ndx"]): str(entry["name"]) for entry in objects}
    except (ValueError, TypeError, KeyError) as error:
        raise BadRecordError(path, f"is not an annotation file of ADE20K: {error!r}") from error


def convert(target: Path, directory: str, overwrite: bool, source: Path) -> Outcome:
    """Link the image and write the label map of one segmentation file."""
    name = source.name.removesuffix(SEGMENTATION)
    path = source.with_name(f"{name}.jpg")
    numbers = class_numbers(read_panoptic_png(str(source)))
    with opened_image(path) as image:
        if image.size != numbers.shape[::-1]:
            raise BadRecordError(source, f"is {numbers.shape} pixels (height, width), but {path} is {image.size[::-1]}")
    names = class_names(source.with_name(f"{name}.json"))
    unnamed = sorted(set(np.unique(numbers).tolist()) - names.keys() - {0})
    place_image(path, target / "images_detectron2" / directory / path.name, overwrite)

    index = {entry["name"]: position for position, entry in enumerate(class_table("ade20k_full"))}
    table = {number: index[class_name] for number, class_name in names.items() if class_name in index}
    labels = relabel(numbers, table, FULL_VOID, np.uint16)
    note = f"{source}: classes {unnamed} are not in the JSON and became void" if unnamed else None
    path = target / "annotations_detectron2" / directory / f"{name}.tif"
    return Outcome(ensure_image(path, labels, overwrite), note=note)


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "ADE20K_2021_17_01"
    for split in args.splits:
        directory = SPLIT_DIRECTORIES[split]
        source = find_directory([base / "images" / "ADE" / directory, base / "images" / directory], LAYOUT)
        sources = source_files(source, f"**/*{SEGMENTATION}", LAYOUT)
        task = partial(convert, base, directory, args.overwrite)
        target = base / "annotations_detectron2" / directory
        yield convert_all(task, sources, args.workers, f"ade20k_full_sem_seg_{split}", target)


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=list(SPLIT_DIRECTORIES)), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
