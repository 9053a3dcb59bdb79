"""Models of the real configs at tiny size, and samples for them."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.config import load_config

TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [1, 1, 2, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8]),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32, "MODEL.MASK_FORMER.DEC_LAYERS", 4),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 10, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64),
]

# Arguments of a small masked-attention decoder, besides the channels of its levels.
DECODER: dict[str, Any] = {
    "num_classes": 3,
    "hidden_dim": 16,
    "num_queries": 5,
    "nheads": 2,
    "dim_feedforward": 32,
    "dec_layers": 4,
    "pre_norm": False,
    "mask_dim": 8,
    "enforce_input_project": False,
}


@BACKBONE_REGISTRY.register()
class FourConvolutions(Backbone):
    """A convolution for each of strides 4, 8, 16 and 32, of which little is traced: for tests of what follows it."""

    size_divisibility = 32

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        channels = (input_shape.channels, 16, 16, 32, 32)
        self.steps = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 3, 4 if i == 0 else 2, padding=1) for i in range(4)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for i, step in enumerate(self.steps):
            outputs[f"res{i + 2}"] = x = step(x).relu()
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"res{i + 2}": ShapeSpec(step.out_channels, stride=4 * 2**i) for i, step in enumerate(self.steps)}


CONVOLUTIONS = ("MODEL.BACKBONE.NAME", "FourConvolutions")


def tiny(config: str, *overrides: Any) -> torch.nn.Module:
    """Build the model of a config file, made small; `overrides` come last."""
    return build_model(load_config(config, [*TINY, *overrides]))


def record(height: int, width: int, objects: int, classes: int = 1, seed: int = 0) -> dict[str, Any]:
    """Return a training sample with random masks and labels; its output size differs from the image."""
    g = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_classes = torch.randint(0, classes, (objects,), generator=g)
    instances.gt_masks = torch.rand(objects, height, width, generator=g) > 0.5
    image = torch.randint(0, 256, (3, height, width), generator=g, dtype=torch.uint8)
    return {
        "image": image,
        "height": height + 5,
        "width": width - 3,
        "instances": instances,
        "sem_seg": torch.randint(0, classes, (height, width), generator=g),
        "file_name": "a.jpg",
    }


def clip(height: int, width: int, frames: int, objects: int, classes: int = 1, seed: int = 0) -> dict[str, Any]:
    """Return a training sample of T frames; object i keeps its row and label and is not visible in frame i."""
    records = [record(height, width, objects, classes, 10 * seed + t) for t in range(frames)]
    instances = [r["instances"] for r in records]
    for t, found in enumerate(instances):
        found.gt_classes = instances[0].gt_classes
        found.gt_ids = torch.arange(objects)
        if frames > 1 and t < objects:
            found.gt_ids[t] = -1
            found.gt_masks[t] = False
    return {
        "image": [r["image"] for r in records],
        "height": height + 5,
        "width": width - 3,
        "instances": instances,
        "file_names": [f"clip/{t}.jpg" for t in range(frames)],
    }


class NoHostReads(TorchDispatchMode):
    """Raise an error in this context if an operation makes the CPU wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def step_and_predict_without_syncs(model: torch.nn.Module, batch: list[dict[str, Any]]) -> None:
    """Compute losses, gradients and results on CUDA; a hidden synchronization is a RuntimeError."""
    model.train()(batch)  # caches and workspaces
    model.eval()(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model.train()(batch).values()).backward()
        with torch.no_grad():
            model.eval()(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def without_gradient(model: torch.nn.Module) -> list[str]:
    """Return names of trained parameters that a backward pass did not reach."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
