#!/usr/bin/env python
r"""Score a model of one class by kind of image: AP, F1 and counts of objects, and what it finds where there is nothing.

    python tools/score_model.py instances_val.json IMAGES --model output/nuclei-packed
    python tools/score_model.py instances_val.json IMAGES --groups groups.csv --json scores.json \
        --opts INPUT.MIN_SIZE_TEST 640 MODEL.MASK_FORMER.TEST.INSTANCES.SCORE_THRESHOLD 0.5

AP measures all candidates of complete images, as evaluation does. F1 and counts measure the objects that the rules and
tiles of the model make of them, as `mask2former predict` does. Images without objects are black, white, of one color, a
gradient and noise.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from score_objects import matches, rles_by_image
from tabulate import tabulate
from tqdm import tqdm

from mask2former import Segmenter
from mask2former.cli.parser import path
from mask2former.data.copy_paste import EMPTY_KINDS, empty_image
from mask2former.data.image_sources import load_image
from mask2former.data.stains import is_bright_field, is_colorless
from mask2former.evaluation.coco_ap import evaluate_coco
from mask2former.evaluation.ground_truth import load_coco_truth
from mask2former.objects import ObjectRules
from mask2former.utils.failures import run_program
from mask2former.utils.file_io import write_json

ALL = "all"
_HEADERS = ("group", "images", "objects", "found", "count error", "median", "F1", "precision", "recall", "AP", "AP50")
_EMPTY_SIZES = ((256, 256), (520, 696))


@dataclass
class Scored:
    """What was found in an image: numbers of objects, candidates as COCO result records."""

    image_id: Any
    group: str
    real: int
    found: int
    matched: int
    candidates: list[dict[str, Any]]


def modality(image: np.ndarray) -> str:
    """Name the kind of microscopy of an image, uint8 (H, W, 3), by brightness and colors."""
    if not is_bright_field(image):
        return "fluorescence"
    return "gray tissue" if is_colorless(image) else "stained tissue"


def grouping(choice: str) -> Callable[[str, np.ndarray], str]:
    """Return a function of file name and pixels that names the group of an image.

    Args:
        choice: "modality", "size" (modality and size), or a CSV file of rows file name, group.

    Raises:
        ValueError: a row of the file has less than two cells, or (when called) an image is not in it.
    """
    if choice == "modality":
        return lambda name, image: modality(image)
    if choice == "size":
        return lambda name, image: f"{modality(image)}, {image.shape[0]} x {image.shape[1]}"
    file = path(choice)
    names: dict[str, str] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.reader(lines), 1):
            if row and len(row) < 2:
                raise ValueError(f"{file}: line {number} needs a file name and a group")
            if row:
                names[Path(row[0].strip()).name] = row[1].strip()

    def of_file(name: str, image: np.ndarray) -> str:
        if name not in names:
            raise ValueError(f"{file} has no group for {name!r}")
        return names[name]

    return of_file


def summary(scored: Sequence[Scored], truth: Any, most: int) -> dict[str, Any]:
    """Return the scores of some images, fractions of 1; with ground truth `truth` also AP and AP50, in percent.

    `most` is the largest number of candidates of an image.
    """
    real, found, matched = (sum(getattr(each, key) for each in scored) for key in ("real", "found", "matched"))
    errors = [abs(each.found - each.real) / max(each.real, 1) for each in scored]
    scores: dict[str, Any] = {
        "images": len(scored),
        "objects": real,
        "found": found,
        "count_error": found / max(real, 1) - 1,
        "median_count_error": median(errors),
        "F1": 2 * matched / max(found + real, 1),
        "precision": matched / max(found, 1),
        "recall": matched / max(real, 1),
    }
    if truth is not None:
        candidates = [record for each in scored for record in each.candidates]
        result = evaluate_coco(truth, candidates, "segm", most, [each.image_id for each in scored])
        scores |= {"AP": result.ap(), "AP50": result.ap(iou=0.5)}
    return scores


def on_empty_images(segment: Callable[[np.ndarray], int]) -> dict[str, int]:
    """Return the number of objects in images without any, summed by kind; `segment` counts those of one image."""
    counts = {}
    for number, kind in enumerate(EMPTY_KINDS):
        images = [empty_image(kind, size, np.random.default_rng([number, size[0]])) for size in _EMPTY_SIZES]
        counts[kind] = sum(map(segment, images))
    return counts


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the scores of groups."""
    rows = []
    for group, values in scores.items():
        row = [group, values["images"], values["objects"], values["found"]]
        row += [f"{values['count_error']:+.1%}", f"{values['median_count_error']:.1%}"]
        row += [f"{values[key]:.3f}" for key in ("F1", "precision", "recall")]
        row += [
            f"{values[key]:.1f}" if key in values and not math.isnan(values[key]) else "-" for key in ("AP", "AP50")
        ]
        rows.append(row)
    return tabulate(rows, _HEADERS, tablefmt="pipe", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=path, help="COCO JSON with the ground truth")
    parser.add_argument("images", type=path, help="directory of its images")
    parser.add_argument("--model", help="name or directory (default: the bundled model)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--groups", default="modality", help="modality, size, or a CSV file (default: %(default)s)")
    parser.add_argument("--iou", type=float, default=0.5, help="mask IoU of a match (default: %(default)s)")
    parser.add_argument("--tile", default=None, help="auto, off or pixels (default: that of the model)")
    parser.add_argument("--limit", type=int, help="only the first images of the file")
    parser.add_argument("--no-ap", action="store_true", help="objects only, which takes half of the time")
    parser.add_argument("--json", type=path, help="also write the scores to this file")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides; must come last"
    )
    return run_program(parser, _score, arguments)


def _score(args: argparse.Namespace) -> None:
    group_of = grouping(args.groups)
    truth, rles = load_coco_truth(args.annotations, needs=("segmentation",)), rles_by_image(args.annotations)
    records = [truth.imgs[key] for key in sorted(truth.imgs, key=str)][: args.limit]
    if not records:
        raise ValueError(f"{args.annotations} has no images")
    segment = Segmenter.load(args.model, device=args.device, overrides=args.opts)
    most = 100 if segment.cfg is None else int(segment.cfg.TEST.DETECTIONS_PER_IMAGE)
    tile = int(args.tile) if args.tile and args.tile.isdecimal() else args.tile
    everything = ObjectRules(score_threshold=0.0)
    scored = []
    for record in tqdm(records, "images", unit="image", disable=None):
        name = Path(record["file_name"]).name
        image = load_image(args.images / record["file_name"])
        objects = _encoded(segment(image, tile=tile))
        real = [rle for _, rle in rles[name]]
        candidates = (
            [] if args.no_ap else segment(image, tile="off", rules=everything).to_coco(record["id"], "instance")
        )
        matched = matches(objects, real, args.iou)
        scored.append(Scored(record["id"], group_of(name, image), len(real), len(objects), matched, candidates))
    compared = None if args.no_ap else truth
    groups = {name: [each for each in scored if each.group == name] for name in sorted({s.group for s in scored})}
    scores = {name: summary(each, compared, most) for name, each in (groups | {ALL: scored}).items()}
    empty = on_empty_images(lambda image: len(_encoded(segment(image, tile=tile))))
    print(table(scores))
    print("objects in images without any: " + ", ".join(f"{kind} {count}" for kind, count in empty.items()))
    if args.json:
        write_json(args.json, {"groups": scores, "empty": empty}, nan="null")


def _encoded(result: Any) -> list[Any]:
    """Return the masks of the objects as RLE, best first."""
    if result.instances is None:
        raise ValueError("the model finds no instances: give one with MODEL.MASK_FORMER.TEST.INSTANCE_ON True")
    order = np.argsort(-result.instances.scores, kind="stable")
    rles = result.instances.patches.encode()
    return [rles[index] for index in order]


if __name__ == "__main__":
    sys.exit(main())
