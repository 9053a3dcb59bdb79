#!/usr/bin/env python
"""Time this project on this machine: each figure with the versions and hardware it belongs to.

    python tools/benchmark.py model --size 480 640
    python tools/benchmark.py op --size 1024 1024 --batch 8
    python tools/benchmark.py eval --images 500
    python tools/benchmark.py train --config-file nuclei/maskformer2_efficientnet_lite0.yaml --size 512 512 --batch 8
    python tools/benchmark.py video --frames 1000 --size 480 854

Weights are random: times do not depend on them, except where a result holds fewer objects.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from mask2former.cli.benchmark import hardware, time_model
from mask2former.utils.failures import run_program

sys.path.insert(0, str(Path(__file__).parent))
import benchmark_eval
import benchmark_op
import benchmark_video

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"

USED = {  # arguments beside --device and --size
    "model": ("config_file", "batch", "bf16", "repeats", "opts"),
    "train": ("config_file", "batch", "objects", "bf16", "repeats", "opts"),
    "op": ("batch", "repeats"),
    "eval": ("images", "boundary"),
    "video": ("config_file", "bf16", "opts", "frames", "window", "overlap", "online"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_program(parser(), _measure, argv)


def _measure(args: argparse.Namespace) -> None:
    unused = [name for name in vars(args) if name not in (*USED[args.what], "what", "device", "size", "debug")]
    changed = next((name for name in unused if getattr(args, name) != parser().get_default(name)), None)
    if changed is not None:
        raise ValueError(f"--{changed.replace('_', '-')} has no effect on '{args.what}'")
    parts = {"op": benchmark_op.run, "eval": benchmark_eval.run, "video": benchmark_video.run}
    if args.what in parts:
        parts[args.what](args, hardware(torch.device(args.device)))
        return
    time_model(args, args.config_file or CONFIG)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "what",
        nargs="?",
        choices=("model", "train", "op", "eval", "video"),
        default="model",
        help="inference, a training iteration, deformable attention alone, the evaluators, or a long video",
    )
    p.add_argument("--config-file", help=f"default: {CONFIG}, for video {benchmark_video.CONFIG}")
    p.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--images", type=int, default=500, help="images of the synthetic validation set of `eval`")
    p.add_argument(
        "--boundary", action="store_true", help="`eval`: keep detectron2's boundary IoU, which it computes by default"
    )
    p.add_argument("--objects", type=int, default=20, help="ground-truth objects per image in a training iteration")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--bf16", action="store_true", help="bf16 autocast")
    benchmark_video.add_arguments(p.add_argument_group("video"))
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides at the end: KEY VALUE ...")
    return p


if __name__ == "__main__":
    sys.exit(main())
