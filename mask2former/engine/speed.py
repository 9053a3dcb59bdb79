"""How fast this machine trains a model: a few iterations on random data."""

from __future__ import annotations

import time
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..utils.device import forked_random
from .optimizer import build_optimizer
from .train_step import select_precision

_RUNS = 3  # after the first, which allocates memory and selects kernels


def measure_speed(cfg: CfgNode, objects: int) -> float:
    """Return million pixels of crops in a second that one rank learns from, with random weights.

    Args:
        cfg: of the training; INPUT.IMAGE_SIZE is the side of its crops.
        objects: in each crop.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    precision = select_precision(cfg)
    side, images = cfg.INPUT.IMAGE_SIZE, max(1, cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION_STEPS)
    batch = [_sample(side, objects, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) for _ in range(images)]
    seconds = []
    with forked_random(device):
        for _ in range(1 + _RUNS):
            start = time.perf_counter()
            with precision.autocast():
                loss = sum(model(batch).values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return images * side**2 / 1e6 / min(seconds[1:])


def _sample(side: int, objects: int, classes: int) -> dict[str, Any]:
    """Return a training sample with squares as objects."""
    count, edge = max(1, objects), max(4, side // 16)
    generator = torch.Generator().manual_seed(count)
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for mask in masks:
        x, y = torch.randint(0, side - edge + 1, (2,), generator=generator).tolist()
        mask[y : y + edge, x : x + edge] = True
    instances = Instances((side, side))
    instances.gt_classes = torch.randint(0, classes, (count,), generator=generator)
    instances.gt_masks = masks
    image = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": side, "width": side, "instances": instances}
