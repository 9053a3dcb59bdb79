#!/usr/bin/env python3
"""Prepare the label maps and panoptic annotations of Cityscapes for cityscapes_fine_{sem_seg,panoptic}_*.

Reads   <root>/cityscapes/gtFine/{train,val,test}/CITY/NAME_gtFine_instanceIds.png
Writes  <root>/cityscapes/gtFine/{train,val,test}/CITY/NAME_gtFine_labelTrainIds.png   0-18 = classes, 255 = void
        <root>/cityscapes/gtFine/cityscapes_panoptic_{train,val}/NAME_gtFine_panoptic.png
        <root>/cityscapes/gtFine/cityscapes_panoptic_{train,val}.json

The files equal those of createTrainIdLabelImgs and createPanopticImgs of cityscapesScripts, which is not needed here.
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

from mask2former.data.datasets.categories import class_table, index_by_id
from mask2former.data.image_io import read_label_map
from mask2former.data.preparation.cli import argument_parser, run, source_files
from mask2former.data.preparation.segments import image_record, panoptic_annotation_file, relabel, segment_record
from mask2former.data.preparation.work import (
    Outcome,
    Report,
    build_annotation_file,
    convert_all,
    ensure_image,
    is_complete,
)
from mask2former.structures.panoptic_ids import id_to_rgb

VOID = 255
DIVISOR = 1000  # an object is 1000 x its label + a number; a crowd region and stuff are the label alone
SOURCE = "_instanceIds.png"
LAYOUT = """\
<root>/cityscapes/gtFine/{train,val,test}/<city>/
  aachen_000000_000019_gtFine_instanceIds.png    from gtFine_trainvaltest.zip"""


def labels_of(ids: np.ndarray) -> np.ndarray:
    """Return the label of every pixel, int (H, W), from the ids of an instanceIds file."""
    return np.where(ids >= DIVISOR, ids // DIVISOR, ids)


def convert_labels(overwrite: bool, source: Path) -> Outcome:
    """Write the label map of one image."""
    ids = read_label_map(str(source))
    labels = relabel(labels_of(ids), index_by_id(class_table("cityscapes")), VOID)
    target = source.with_name(source.name.replace(SOURCE, "_labelTrainIds.png"))
    return Outcome(ensure_image(target, labels, overwrite))


def panoptic_path(target: Path, source: Path) -> Path:
    """Return the path of the panoptic PNG file of an instanceIds file."""
    return target / source.name.replace(SOURCE, "_panoptic.png")


def is_finished(target: Path, source: Path) -> bool:
    """Return whether the panoptic PNG file of an image is complete."""
    return is_complete(panoptic_path(target, source), "RGB", read_label_map(str(source)).shape)


def convert_panoptic(target: Path, overwrite: bool, source: Path) -> Outcome:
    """Build the entry and write the panoptic PNG file of one image."""
    ids = read_label_map(str(source))
    path = panoptic_path(target, source)
    things = {entry["id"]: entry["isthing"] for entry in class_table("cityscapes")}
    known = np.where(np.isin(labels_of(ids), list(things)), ids, 0)
    segments = []
    for segment in np.unique(known[known > 0]).tolist():
        label = segment // DIVISOR if segment >= DIVISOR else segment
        segments.append(segment_record(segment, label, known == segment, int(segment < DIVISOR and things[label])))
    name = source.name.replace(f"_gtFine{SOURCE}", "")
    entry = (
        image_record(name, source.name.replace(SOURCE, "_leftImg8bit.png"), ids.shape),
        {"image_id": name, "file_name": path.name, "segments_info": segments},
    )
    return Outcome(ensure_image(path, id_to_rgb(known), overwrite), entry)


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "cityscapes" / "gtFine"
    for split in args.splits:
        sources = source_files(base / split, f"*/*{SOURCE}", LAYOUT)
        task = partial(convert_labels, args.overwrite)
        yield convert_all(task, sources, args.workers, f"labelTrainIds of {split}", base / split)
        if split == "test":  # its annotations are empty
            continue
        target = base / f"cityscapes_panoptic_{split}"
        yield build_annotation_file(
            target.with_suffix(".json"),
            {path.name.replace(f"_gtFine{SOURCE}", ""): path for path in sources},
            partial(convert_panoptic, target, args.overwrite),
            partial(panoptic_annotation_file, class_table("cityscapes")),
            workers=args.workers,
            overwrite=args.overwrite,
            is_finished=partial(is_finished, target),
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=["train", "val", "test"]), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
