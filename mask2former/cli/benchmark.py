"""`mask2former benchmark`: time a model on this machine."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..config import load_config
from ..model_source import DEFAULT_MODEL, locate_model
from ..ops import backend
from ..utils.device import select_device
from .parser import positive, refuse_given

HELP = "time a model on this machine"
DESCRIPTION = """Time a model on this machine: seconds and images per second, with versions and hardware.

Weights are random and nothing is downloaded: times do not depend on the weights, except where a result holds fewer
objects. The image is noise of --size pixels, as the network sees it.

examples:
  mask2former benchmark                                         the included model
  mask2former benchmark --model coco-panoptic-swin-t --size 800 1216
  mask2former benchmark --device cuda --bf16 --batch 8
  mask2former benchmark --train --batch 4 --size 512 512        an iteration of the training
"""
_PACKAGE = __name__.rpartition(".cli.")[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--model", metavar="NAME", help=f"model of the zoo or directory (default: {DEFAULT_MODEL})")
    parser.add_argument("--config-file", metavar="FILE", help="config file instead of --model")
    parser.add_argument("--train", action="store_true", help="time a training iteration (default: inference)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument(
        "--size", type=positive, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="(default: 480 640)"
    )
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--objects", type=positive, metavar="N", help="per image of --train (default: 20)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="timed runs (default: 5)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides; must come last"
    )


def run(args: argparse.Namespace) -> int:
    """Time the model and print the figures; return 0.

    Raises:
        FileNotFoundError, ValueError: no such model, config, device or key.
    """
    args.device = str(select_device(args.device))
    args.what = "train" if args.train else "model"
    if not args.train:
        refuse_given(args, ("objects",), "without --train")
    if args.config_file:
        refuse_given(args, ("model",), "with --config-file")
    args.objects = args.objects or 20
    time_model(args, str(args.config_file or _config_of(args.model)))
    return 0


def _config_of(name: str | None) -> Path:
    """Return the config of a model, without its weights."""
    return locate_model(name, None, "random")[0]


def time_model(args: argparse.Namespace, config: str) -> None:
    """Print the times of inference (`args.what` is "model") or of a training iteration ("train").

    Args:
        args: `what`, `device`, `size`, `batch`, `objects`, `bf16`, `repeats`, `opts`.
        config: config file.

    Raises:
        ValueError: a video model.
    """
    cfg = load_config(config, ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", *args.opts])
    if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer":
        raise ValueError(f"{config} is a video model; in a checkout run: python tools/benchmark.py video")
    model = build_model(cfg)
    device = model.device
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    batch = [record(args.size, args.objects, classes, seed) for seed in range(args.batch)]
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
    print(f"{config}, {args.batch} x {args.size[0]} x {args.size[1]}, {'bf16' if args.bf16 else 'fp32'}")
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


def hardware(device: torch.device) -> str:
    """Return one line with device, threads and versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    package = f"mask2former {sys.modules[_PACKAGE].__version__}"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {package}"
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


def record(size: tuple[int, int], objects: int, classes: int, seed: int) -> dict[str, Any]:
    """Build a random training sample of `size` (height, width) with rectangles as objects."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(objects, 2, generator=generator)
    y, x = torch.arange(height)[None, :, None] / height, torch.arange(width)[None, None] / width
    top, left = corner[:, :1, None], corner[:, 1:, None]
    instances = Instances((height, width))
    instances.gt_masks = (y >= top) & (y < top + 0.2) & (x >= left) & (x < left + 0.2)
    instances.gt_classes = torch.randint(0, classes, (objects,), generator=generator)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances, "file_name": f"{seed}"}
