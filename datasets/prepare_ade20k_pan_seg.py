#!/usr/bin/env python3
"""Prepare the panoptic annotations of ADE20K: 100 thing and 50 stuff classes.

Reads   <root>/ADEChallengeData2016/annotations/{training,validation}/*.png            classes, 0 = void
        <root>/ADEChallengeData2016/annotations_instance/{training,validation}/*.png   red = class, green = object
Writes  <root>/ADEChallengeData2016/ade20k_panoptic_{train,val}/*.png                  segment ids
        <root>/ADEChallengeData2016/ade20k_panoptic_{train,val}.json

Stuff comes from `annotations`, things from `annotations_instance`; where they overlap, the pixel belongs to the thing.
As in the published annotations, area and box of a stuff segment include the pixels that things cover. All other pixels
are void. A second run writes only missing or broken files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

import numpy as np

from mask2former.data import BadRecordError
from mask2former.data.datasets.categories import class_table
from mask2former.data.image_io import read_label_map
from mask2former.data.preparation.cli import argument_parser, run, source_files
from mask2former.data.preparation.segments import (
    SegmentIds,
    image_record,
    panoptic_annotation_file,
    read_ade20k_objects,
    segment_record,
)
from mask2former.data.preparation.work import Outcome, Report, build_annotation_file, ensure_image, is_complete
from mask2former.structures.panoptic_ids import id_to_rgb

SPLIT_DIRECTORIES = {"train": "training", "val": "validation"}
LAYOUT = """\
<root>/ADEChallengeData2016/
  annotations/{training,validation}/             ADE_val_00000001.png, from ADEChallengeData2016.zip
  annotations_instance/{training,validation}/    ADE_val_00000001.png, from annotations_instance.tar"""


def merge(labels: np.ndarray, keys: np.ndarray, objects: dict[int, int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Merge stuff and objects, with the objects on top.

    Args:
        labels: int32 (H, W), class index + 1, 0 = void.
        keys: int32 (H, W), a key for each object.
        objects: key -> class index.

    Returns:
        int64 (H, W) segment ids, 0 = void; and the `segments_info`.
    """
    classes = class_table("ade20k")
    ids = SegmentIds({entry["id"]: entry["color"] for entry in classes})
    merged = np.zeros(labels.shape, np.int64)
    stuff = [label for label in np.unique(labels).tolist() if label and not classes[label - 1]["isthing"]]
    masks = [(label - 1, labels == label) for label in stuff]
    masks += [(category, keys == key) for key, category in objects.items()]
    segments = []
    for category, mask in masks:
        segment = ids.take(category)
        merged[mask] = segment
        segments.append(segment_record(segment, category, mask))
    return merged, segments


def is_finished(target: Path, sources: tuple[Path, Path]) -> bool:
    """Return whether the PNG file of an image is complete."""
    return is_complete(target / sources[0].name, "RGB", read_label_map(str(sources[0])).shape)


def convert(target: Path, overwrite: bool, sources: tuple[Path, Path]) -> Outcome:
    """Build the entry and write the PNG file of one image."""
    labels = read_label_map(str(sources[0]))
    if labels.max(initial=0) > len(class_table("ade20k")):
        raise BadRecordError(
            sources[0], f"label {labels.max()} is not in [0, 150]; use the annotations of SceneParse150"
        )
    keys, objects = read_ade20k_objects(sources[1])
    if keys.shape != labels.shape:
        raise BadRecordError(sources[1], f"is {keys.shape} pixels (height, width), but {sources[0]} is {labels.shape}")
    merged, segments = merge(labels, keys, objects)
    name = sources[0].stem
    entry = (
        image_record(name, f"{name}.jpg", labels.shape),
        {"image_id": name, "file_name": sources[0].name, "segments_info": segments},
    )
    return Outcome(ensure_image(target / sources[0].name, id_to_rgb(merged), overwrite), entry)


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "ADEChallengeData2016"
    for split in args.splits:
        objects = base / "annotations_instance" / SPLIT_DIRECTORIES[split]
        source_files(objects, "*.png", LAYOUT)
        sources = source_files(base / "annotations" / SPLIT_DIRECTORIES[split], "*.png", LAYOUT)
        target = base / f"ade20k_panoptic_{split}"
        yield build_annotation_file(
            target.with_suffix(".json"),
            {path.stem: (path, objects / path.name) for path in sources},
            partial(convert, target, args.overwrite),
            partial(panoptic_annotation_file, class_table("ade20k")),
            workers=args.workers,
            overwrite=args.overwrite,
            is_finished=partial(is_finished, target),
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=list(SPLIT_DIRECTORIES)), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
