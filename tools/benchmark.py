#!/usr/bin/env python
"""Time this project on this machine: each figure with the versions and hardware it belongs to.

    python tools/benchmark.py infer --size 480 640
    python tools/benchmark.py infer --config-file nuclei/maskformer2_efficientnet_lite0.yaml --compare huggingface
    python tools/benchmark.py train --config-file nuclei/maskformer2_efficientnet_lite0.yaml --size 512 512 --batch 8
    python tools/benchmark.py scale --ranks 4 --size 1024 1024 --batch 8 --bf16
    python tools/benchmark.py sizes --size 800 1333 --bf16 --compile graph
    python tools/benchmark.py op --size 1024 1024 --batch 8
    python tools/benchmark.py data
    python tools/benchmark.py eval --images 500
    python tools/benchmark.py video --frames 1000 --size 480 854

Weights are random: times do not depend on them, except where a result holds fewer objects (`infer --dense`). --json
writes the figures; docs/benchmarks.md is made of such files by tools/make_benchmarks.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from mask2former.benchmark import inference, training
from mask2former.benchmark.hardware import describe
from mask2former.benchmark.measure import peak_resident
from mask2former.benchmark.options import add_inference, add_model, add_output, add_training
from mask2former.benchmark.report import GIB, Report, Row
from mask2former.cli.parser import not_negative, positive
from mask2former.utils.failures import run_program
from mask2former.utils.parallel import use_one_thread

sys.path.insert(0, str(Path(__file__).parent))
import benchmark_eval
import benchmark_op
import benchmark_scale
import benchmark_sizes
import benchmark_video

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"

_MODEL = ("config_file", "batch", "bf16", "repeats", "opts", "compile")
_TRAINING = (*_MODEL, "objects", "uneven")
USED = {  # arguments beside those of all
    "infer": (*_MODEL, "compare", "source", "dense"),
    "train": (*_TRAINING, "compare"),
    "scale": (*_TRAINING, "ranks"),
    "sizes": ("config_file", "bf16", "opts", "compile", "images", "dense"),
    "op": ("batch", "repeats", "channels"),
    "data": ("config_file", "images", "repeats"),
    "eval": ("images", "boundary"),
    "video": ("config_file", "bf16", "opts", "frames", "window", "overlap", "online"),
}
OF_ALL = ("what", "device", "size", "json", "label", "debug")
ALIASES = {"model": "infer"}
IMAGES = {"sizes": 200, "eval": 500, "data": 40}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_program(parser(), _measure, argv)


def _measure(args: argparse.Namespace) -> None:
    args.what = ALIASES.get(args.what, args.what)
    unused = [name for name in vars(args) if name not in (*USED[args.what], *OF_ALL)]
    changed = next((name for name in unused if getattr(args, name) != parser().get_default(name)), None)
    if changed is not None:
        raise ValueError(f"--{changed.replace('_', '-')} has no effect on '{args.what}'")
    args.images = args.images or IMAGES.get(args.what)
    config = args.config_file or CONFIG
    if args.what == "scale" and torch.device(args.device).type == "cuda":
        use_one_thread()  # as its ranks do; the report counts threads
    if args.what in _OF_MODELS:
        _OF_MODELS[args.what](args, config).publish(args.json, args.label)
        return
    about = describe(torch.device(args.device))
    if args.what == "scale":
        report = benchmark_scale.run(args, about, config)
    else:
        report = _PARTS[args.what](args, about)
    report.write(args.json, args.label)


def _data(args: argparse.Namespace, about: str) -> Report:
    """Run the benchmark of the mapper, whose figures are milliseconds an image: here, and ", plain".

    Raises:
        ValueError: this checkout has none.
    """
    if importlib.util.find_spec("benchmark_data") is None:
        raise ValueError("'data' needs tools/benchmark_data.py, which this checkout does not have")
    part = importlib.import_module("benchmark_data")
    found: dict[str, float] = part.run(args, about)
    config = args.config_file or part.CONFIG
    title = f"{config}, {args.images} images of {args.size[0]} x {args.size[1]}, CPU time of one thread"
    settings = {"config": config, "images": args.images, "size": list(args.size)}
    report = Report("data", title, settings, torch.device("cpu"))
    for name, milliseconds in found.items():
        if name.endswith(", plain"):
            continue
        row = Row(name)
        row.add("time", milliseconds, "ms an image")
        if f"{name}, plain" in found:
            row.add("time of the plain way", found[f"{name}, plain"], "ms an image")
            if milliseconds > 0:  # a few images may take less than the clock of processes tells
                row.add("ratio", found[f"{name}, plain"] / milliseconds, "x the time here")
        report.rows.append(row)
    report.rows[-1].add("peak memory of the process", peak_resident() / GIB, "GiB")
    return report


# Parts that `describe` must not precede: it starts CUDA, whose time `sizes` counts.
_OF_MODELS: dict[str, Callable[[argparse.Namespace, str], Report]] = {
    "infer": inference.run,
    "train": training.run,
    "sizes": benchmark_sizes.run,
}
_PARTS: dict[str, Callable[[argparse.Namespace, str], Report]] = {
    "op": benchmark_op.run,
    "eval": benchmark_eval.run,
    "video": benchmark_video.run,
    "data": _data,
}


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "what",
        nargs="?",
        choices=(*USED, *ALIASES),
        default="infer",
        help="inference (also called model), a training step, the same on several ranks, images of many sizes, "
        "deformable attention alone, the loader, the evaluators, or a long video (default: %(default)s)",
    )
    p.add_argument("--config-file", help=f"default: {CONFIG}, for video {benchmark_video.CONFIG}")
    p.add_argument("--size", type=positive, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    p.add_argument("--batch", type=positive, default=1, help="images in a step, of each rank")
    p.add_argument("--channels", type=positive, default=32, help="`op`: channels of a head (default: %(default)s)")
    p.add_argument(
        "--images",
        type=positive,
        help=f"`sizes`: images; `eval`, `data`: those of the synthetic dataset (default: {IMAGES})",
    )
    p.add_argument(
        "--boundary", action="store_true", help="`eval`: keep detectron2's boundary IoU, which it computes by default"
    )
    p.add_argument("--objects", type=not_negative, default=20, help="ground-truth objects per image in a training step")
    p.add_argument("--ranks", type=positive, default=2, help="`scale`: the largest count (1, 2, 4, ... are measured)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--bf16", action="store_true", help="bf16 autocast")
    p.add_argument("--repeats", type=positive, default=5)
    add_model(p)
    add_inference(p.add_argument_group("infer"))
    add_training(p.add_argument_group("train, scale"))
    benchmark_video.add_arguments(p.add_argument_group("video"))
    add_output(p)
    p.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides at the end: KEY VALUE ...")
    return p


if __name__ == "__main__":
    sys.exit(main())
