#!/usr/bin/env python
"""Compare counted objects with ground truth: F1 at a mask IoU, and the errors of counts.

    mask2former predict IMAGES --output out --save json
    python tools/score_objects.py out/results.json instances_val.json

AP measures all candidates of a model; this measures the objects that rules and tiles make of them.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from mask2former.cli.parser import path
from mask2former.data.datasets.coco_annotations import check_score, read_instances
from mask2former.errors import BadRecordError
from mask2former.structures.masks import segmentation_to_patch
from mask2former.structures.rle import encode_patches
from mask2former.utils.failures import run_program


def rles_by_image(file: Path) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Read score (1 of ground truth) and run lengths of the objects of each image, by file name, best first.

    Raises:
        BadRecordError: the file is malformed, or two images have the same name.
    """
    content = read_instances(str(file), benchmark=True, needs=("segmentation",))
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for image in content.images.values():
        name = Path(image.get("file_name", "")).name
        if not name or name in found:
            state = f"the name {name!r} is that of another image too" if name else "needs a 'file_name'"
            raise BadRecordError(file, state, f"image {image['id']!r}")
        found[name] = []
    for annotation in content.annotations:
        image = content.images[annotation["image_id"]]
        size = image["height"], image["width"]
        rle = encode_patches([segmentation_to_patch(annotation["segmentation"], size)], size)[0]
        score = check_score(str(file), annotation.get("score", 1.0), f"annotation {annotation['id']}")
        found[Path(image["file_name"]).name].append((score, rle))
    return {name: sorted(rows, key=lambda row: -row[0]) for name, rows in found.items()}


def matches(objects: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]], iou: float) -> int:
    """Count the objects that are matched, best first, to an object of the ground truth with at least this IoU."""
    if not objects or not truth:
        return 0
    overlaps = np.asarray(mask_util.iou(list(objects), list(truth), [0] * len(truth)))
    free = np.ones(len(truth), dtype=bool)
    count = 0
    for row in overlaps:
        candidates = np.where(free, row, -1.0)
        best = int(candidates.argmax())
        if candidates[best] >= iou:
            free[best] = False
            count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the scores; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=path, help="results.json of mask2former predict")
    parser.add_argument("truth", type=path, help="COCO JSON with the ground truth")
    parser.add_argument("--iou", type=float, default=0.5, help="mask IoU of a match (default: %(default)s)")
    return run_program(parser, _score, arguments)


def _score(args: argparse.Namespace) -> None:
    results, truth = rles_by_image(args.results), rles_by_image(args.truth)
    unknown = sorted(set(results) - set(truth))
    if unknown or not results:
        raise ValueError(f"{args.truth} has no image {unknown[0]!r}" if unknown else f"{args.results} has no images")
    totals: defaultdict[str, int] = defaultdict(int)
    errors = []
    for name, rows in results.items():
        objects, real = [rle for _, rle in rows], [rle for _, rle in truth[name]]
        totals["matched"] += matches(objects, real, args.iou)
        totals["found"] += len(objects)
        totals["true"] += len(real)
        errors.append(abs(len(objects) - len(real)) / max(len(real), 1))
    f1 = 2 * totals["matched"] / max(totals["found"] + totals["true"], 1)
    print(
        f"{len(results)} images, {totals['true']} objects, {totals['found']} found "
        f"({totals['found'] / max(totals['true'], 1) - 1:+.0%}), F1 at IoU {args.iou:g} {f1:.3f}, "
        f"median error of an image's count {median(errors):.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
