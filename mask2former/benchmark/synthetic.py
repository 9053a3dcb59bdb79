"""Models with random weights, and images and samples for them."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from ..config import load_config
from ..utils.device import forked_random

_CERTAIN = 100.0  # logits of random weights differ by a few tenths


def config_of(args: argparse.Namespace, config: str) -> CfgNode:
    """Load the config of a benchmark.

    Args:
        args: `device`, `size`, `opts`, `compile`.
        config: config file.

    Raises:
        ValueError: a video model.
    """
    height, width = args.size
    size = ["INPUT.MIN_SIZE_TEST", str(min(height, width)), "INPUT.MAX_SIZE_TEST", str(max(height, width))]
    cfg = load_config(config, ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", *size, *args.opts])
    if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer":
        raise ValueError(f"{config} is a video model; in a checkout run: python tools/benchmark.py video")
    if args.compile is not None:
        cfg.MODEL.COMPILE = args.compile
    return cfg


def eager(cfg: CfgNode) -> CfgNode:
    """Return the config of the same model whose operations run one by one, as `floor.cost` sees them."""
    changed = cfg.clone()
    changed.MODEL.COMPILE = "off"
    return changed


def build(cfg: CfgNode, *, train: bool = False, dense: bool = False) -> nn.Module:
    """Build the model with random weights, the same in every run.

    Args:
        cfg: of the model.
        train: in training mode.
        dense: class scores near 1, so that results hold most queries. By chance hardly one is above a threshold.
    """
    with forked_random(torch.device(cfg.MODEL.DEVICE)):
        torch.manual_seed(0)
        model: nn.Module = build_model(cfg).train(train)
    if dense:
        with torch.no_grad():
            for parameter in model.sem_seg_head.predictor.class_embed.parameters():  # type: ignore[union-attr]
                parameter.mul_(_CERTAIN)
    return model


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


def batch_of(args: argparse.Namespace, cfg: CfgNode, rank: int = 0) -> list[dict[str, Any]]:
    """Build the samples of a rank: `args.batch` of `args.size` with `args.objects` objects each.

    With `args.uneven` the number of objects is random, from 1 to twice as many, as in real data.
    """
    classes, samples = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, []
    for seed in range(rank * args.batch, (rank + 1) * args.batch):
        objects = args.objects
        if getattr(args, "uneven", False):
            objects = int(np.random.default_rng(seed).integers(1, 2 * objects + 1))
        samples.append(record(tuple(args.size), objects, classes, seed))
    return samples


def arrays_of(args: argparse.Namespace) -> list[np.ndarray]:
    """Build `args.batch` images (H, W, 3) uint8 of `args.source`, or else of `args.size`."""
    size = tuple(args.source or args.size)
    return [np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed in range(args.batch)]


def title(args: argparse.Namespace, config: str, cfg: CfgNode) -> str:
    """Return what is measured in one line."""
    precision = "bf16" if args.bf16 else "fp32"
    return f"{config}, {args.batch} x {args.size[0]} x {args.size[1]}, {precision}, compile {cfg.MODEL.COMPILE}"


def settings(args: argparse.Namespace, config: str, cfg: CfgNode, *more: str) -> dict[str, Any]:
    """Return what the figures depend on, for the report; `more` are names of further arguments."""
    found = {"config": config, "size": list(args.size), "batch": args.batch, "bf16": args.bf16, "opts": args.opts}
    for name in ("source", "dense", "uneven", *more):
        value = getattr(args, name, None)
        if value:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found | {"compile": cfg.MODEL.COMPILE}
