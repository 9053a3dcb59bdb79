#!/usr/bin/env python
"""Average precision of instance results with boundary IoU instead of mask IoU.

    python tools/evaluate_coco_boundary_ap.py --gt-json-file datasets/coco/annotations/instances_val2017.json \\
        --dt-json-file output/inference/coco_instances_results.json

Boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021) compares only pixels near the contours, so it is sensitive to
errors at the edges of large objects, which hardly change mask IoU. "Near" is --dilation-ratio times the image
diagonal. AP is the mean over IoU thresholds 0.50 to 0.95, of the smaller of boundary and mask IoU, as in the paper.
Numbers are in percent; nan where there is no ground truth. The package boundary-iou-api is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from mask2former.utils.failures import run_program  # noqa: E402

IOU_TYPES = ("boundary", "segm", "bbox")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gt-json-file", required=True, metavar="FILE", help="ground truth, a COCO annotation file")
    parser.add_argument(
        "--dt-json-file",
        required=True,
        metavar="FILE",
        help="predictions, a COCO results file: coco_instances_results.json of an evaluation",
    )
    parser.add_argument("--iou-type", default="boundary", choices=IOU_TYPES, help="type of IoU (default boundary)")
    parser.add_argument(
        "--dilation-ratio",
        type=float,
        metavar="R",
        help="width of the boundary as a fraction of the image diagonal (default 0.020); only for boundary",
    )
    return run_program(parser, _evaluate, argv, mistake=1)


def _evaluate(args: argparse.Namespace) -> None:
    from mask2former.cli.parser import refuse_given
    from mask2former.evaluation.boundary import boundary_ap
    from mask2former.utils.tables import side_by_side

    if args.iou_type != "boundary":
        refuse_given(args, ("dilation_ratio",), f"with --iou-type {args.iou_type}")
    if args.dilation_ratio is None:
        args.dilation_ratio = 0.020
    if not 0 < args.dilation_ratio < 1:
        raise ValueError(f"--dilation-ratio must lie between 0 and 1, not {args.dilation_ratio}")
    metrics = boundary_ap(args.gt_json_file, args.dt_json_file, args.dilation_ratio, args.iou_type)
    classes = [(name[3:], value) for name, value in metrics.items() if name.startswith("AP-")]
    if classes:
        print(side_by_side(("class", "AP"), classes))
    title = f"{args.iou_type} AP of {args.dt_json_file}"
    print(title if args.iou_type != "boundary" else f"{title}, dilation ratio {args.dilation_ratio:g}")
    for name, value in metrics.items():
        if not name.startswith("AP-"):
            print(f"  {name:<8}{value:8.3f}")


if __name__ == "__main__":
    sys.exit(main())
