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
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

import mask2former
from mask2former.config import load_config
from mask2former.ops import backend

sys.path.insert(0, str(Path(__file__).parent))
import benchmark_eval
import benchmark_op
import benchmark_video

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


def hardware(device: torch.device) -> str:
    """Return one line with device, threads and versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, mask2former {mask2former.__version__}"
    return f"{name}; {versions}; deformable attention: {backend(device.type)}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())


def timed(work: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Time `repeats` runs in seconds, after two warm-up runs."""
    seconds = []
    for run in range(repeats + 2):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        if run >= 2:
            seconds.append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def record(args: argparse.Namespace, classes: int, seed: int) -> dict[str, Any]:
    """Build a random training sample with `args.objects` rectangles."""
    height, width = args.size
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(args.objects, 2, generator=generator)
    y, x = torch.arange(height)[None, :, None] / height, torch.arange(width)[None, None] / width
    top, left = corner[:, :1, None], corner[:, 1:, None]
    instances = Instances((height, width))
    instances.gt_masks = (y >= top) & (y < top + 0.2) & (x >= left) & (x < left + 0.2)
    instances.gt_classes = torch.randint(0, classes, (args.objects,), generator=generator)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances, "file_name": f"{seed}"}


def main() -> None:
    """Run the command line."""
    args = parser().parse_args()
    if args.what == "op":
        benchmark_op.run(args, hardware(torch.device(args.device)))
        return
    if args.what == "eval":
        benchmark_eval.run(args, hardware(torch.device(args.device)))
        return
    if args.what == "video":
        benchmark_video.run(args, hardware(torch.device(args.device)))
        return
    overrides = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", *args.opts]
    cfg = load_config(args.config_file or CONFIG, overrides)
    model = build_model(cfg)
    device = model.device
    batch = [record(args, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, seed) for seed in range(args.batch)]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)

    def predict() -> None:
        with torch.inference_mode(), autocast:
            model(batch)

    def network() -> None:
        with torch.inference_mode(), autocast:
            model.sem_seg_head(model.backbone(model.preprocess(batch).tensor))

    def train_iteration() -> None:
        with autocast:
            total = sum(model(batch).values())
        model.zero_grad(set_to_none=True)
        total.backward()

    rows: dict[str, Callable[[], None]] = {"forward, losses, backward": train_iteration}
    if args.what == "model":
        rows = {"network": network, "network and post-processing": predict}
    model.train(args.what == "train")
    print(f"{args.config_file}, {args.batch} x {args.size[0]} x {args.size[1]}, {'bf16' if args.bf16 else 'fp32'}")
    print(hardware(device))
    for name, work in rows.items():
        seconds = timed(work, args.repeats, device)
        middle = statistics.median(seconds)
        print(
            f"{name:28s} median {middle * 1e3:9.1f} ms, min {min(seconds) * 1e3:9.1f} ms, "
            f"{args.batch / middle:7.2f} images/s"
        )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


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
    main()
