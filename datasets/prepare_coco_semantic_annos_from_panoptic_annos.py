#!/usr/bin/env python3
"""Make the semantic label maps of COCO (panoptic_semseg_{train,val}2017) from its panoptic annotations.

Run it from the root of the project, with DETECTRON2_DATASETS set if the data is not in ./datasets. A second
run makes only what is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from mask2former.data import dataset_root
from mask2former.data.datasets.coco_semantic import write_semantic_maps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", default=dataset_root(), help="folder that holds coco/ (default: %(default)s)"
    )
    parser.add_argument("--splits", nargs="+", default=["val", "train"], choices=["train", "val"])
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    args = parser.parse_args()
    for split in args.splits:
        try:
            written = write_semantic_maps(args.root, split, args.workers)
        except (FileNotFoundError, ValueError) as error:
            parser.exit(1, f"{error}\n")
        print(f"{split}2017: {written} label maps written")


if __name__ == "__main__":
    main()
