"""One training step that is the same on every machine, in float64: what `data/training_steps.json` records.

Weights and images come from `deterministic.py`. The step uses what every version has: a config, `build_model`, the
model in training mode, `backward`, and the groups of `build_optimizer`. How the losses are computed may change freely:
random points are replaced by points that do not depend on how many are drawn at once or in which order, and the
assignment is read where SciPy computes it.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.optimize
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mask2former.config import load_config
from mask2former.engine.optimizer import build_optimizer
from tests.parity import deterministic
from tests.parity.float64 import everything_in_float64

RECORD = Path(__file__).parent / "data" / "training_steps.json"
TOLERANCE = 1e-9  # relative; processors and threads differ by about 3e-15
FRAMES = 2  # of the clips of video models
# The published recipes, except for the number of points, which keeps the step short, randomness, and one weight: as
# published it is that of the dice loss, and to confuse the two would not show.
OPTIONS = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 600),
    *("MODEL.MASK_FORMER.DROPOUT", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
    *("MODEL.MASK_FORMER.MASK_WEIGHT", 4.0),
)

# An object is its class and its box (left, top, right, bottom), per image or frame; None: not visible in that frame.
Box = tuple[int, int, int, int]
EMPTY: Box = (0, 0, 0, 0)


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        config: the file below `configs/`.
        sizes: height and width of each image, or of the frames of each clip.
        objects: per image or clip (class, box of each frame) of each object. Numbers of objects differ between the
            images, because the assignment of an image is known by it.
    """

    config: str
    sizes: tuple[tuple[int, int], ...]
    objects: tuple[tuple[tuple[int, tuple[Box | None, ...]], ...], ...]

    @property
    def is_video(self) -> bool:
        """Return whether the samples are clips."""
        return "youtubevis" in self.config


# Every step has images of two sizes, so that they are padded, one image without objects, and one object of few pixels.
STEPS = {
    "coco_panoptic_r50": Step(
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        ((64, 96), (96, 64), (64, 64)),
        (
            ((0, ((5, 8, 50, 40),)), (17, ((60, 30, 63, 32),)), (132, (EMPTY,)), (100, ((0, 40, 96, 64),))),
            ((80, ((0, 0, 64, 30),)), (3, ((20, 50, 41, 90),))),
            (),
        ),
    ),
    "ade20k_semantic_swin_tiny": Step(
        "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml",
        ((64, 64), (96, 64), (64, 96)),
        (
            (),
            ((2, ((0, 0, 64, 40),)), (149, ((30, 60, 33, 62),)), (12, ((0, 40, 64, 96),))),
            ((12, ((0, 0, 70, 64),)),),
        ),
    ),
    "ytvis2019_r50": Step(
        "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml",
        ((64, 64), (64, 96), (64, 64)),
        (
            ((39, ((10, 10, 40, 50), (14, 10, 44, 52))),),
            (
                (0, ((5, 8, 50, 40), (9, 8, 54, 38))),
                (25, (None, (60, 30, 63, 32))),
                (25, ((50, 20, 90, 60), None)),
            ),
            (),
        ),
    ),
}


def run(name: str, noise: float = 0.0) -> dict[str, Any]:
    """Run a step, on one batch, with weights and random points that are fixed.

    Args:
        name: one of STEPS.
        noise: change each weight by about this fraction, as if it were rounded.

    Returns:
        "losses": {name: weighted loss};
        "assignment": {image: for each prediction, the last layer's first, [queries, targets] of its pairs};
        "groups" and "modules": per group of the optimizer, and per module (the first three parts of a parameter's
        name), {"parameters": how many numbers, "gradients": how many of them have a gradient, "norm": its L2 norm}.
    """
    step = STEPS[name]
    cfg = load_config(step.config, OPTIONS)
    with everything_in_float64():  # also what is computed of the config, such as the weights of classes
        model = build_model(cfg).train()
    weights = deterministic.fill(model.state_dict(), deterministic.exact)
    if noise:
        weights = {
            key: w * (1 + noise * torch.randn_like(w)) if w.is_floating_point() else w for key, w in weights.items()
        }
    model.load_state_dict(weights)
    with everything_in_float64(), FixedPoints(), assignments() as calls:
        losses = model(_batch(step))
        torch.stack(list(losses.values())).sum().backward()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups, modules = defaultdict(list), defaultdict(list)
    for group in build_optimizer(cfg, model).param_groups:
        for parameter in group["params"]:
            groups[f"lr {group['lr']:g}, weight decay {group['weight_decay']:g}"].append(parameter)
            modules[".".join(names[parameter].split(".")[:3])].append(parameter)
    return {
        "losses": {key: float(loss.detach()) for key, loss in sorted(losses.items())},
        "assignment": _by_image(calls, [len(objects) for objects in step.objects]),
        "groups": {key: _gradient(parameters) for key, parameters in sorted(groups.items())},
        "modules": {key: _gradient(parameters) for key, parameters in sorted(modules.items())},
    }


class FixedPoints(TorchFunctionMode):
    """Let `torch.rand(..., P, 2)` give P points that depend on P alone, the same for every leading index."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.rand, torch.rand_like) and result.dim() >= 2 and result.shape[-1] == 2:
            return points(result.shape[-2]).to(result).expand(result.shape).contiguous()
        return result


def points(count: int) -> Tensor:
    """Return evenly spread points (count, 2) in [0, 1): a Kronecker sequence, whose start depends on `count`."""
    plastic = 1.3247179572447460  # the root of x^3 = x + 1, whose powers spread best in two dimensions
    steps = torch.tensor([1 / plastic, 1 / plastic**2], dtype=torch.float64)
    return (torch.arange(1, count + 1, dtype=torch.float64)[:, None] * steps + count * math.sqrt(2)) % 1


@contextmanager
def assignments() -> Iterator[list[tuple[int, list[list[int]]]]]:
    """Collect what SciPy's assignment is asked in this context: number of targets and [queries, targets] of each call.

    Calls without targets are left out: whether there are any is the matcher's choice.
    """
    original = scipy.optimize.linear_sum_assignment
    calls: list[tuple[int, list[list[int]]]] = []

    def reading(cost: Any, *args: Any, **kwargs: Any) -> Any:
        queries, targets = original(cost, *args, **kwargs)
        if len(targets):
            calls.append((np.asarray(cost).shape[1], [queries.tolist(), targets.tolist()]))
        return queries, targets

    with ExitStack() as stack:
        for module in [m for key, m in sys.modules.items() if key.startswith(("mask2former", "scipy.optimize"))]:
            for name in [name for name, value in vars(module).items() if value is original]:
                stack.enter_context(mock.patch.object(module, name, reading))
        yield calls


def differences(recorded: Any, computed: Any, rtol: float = TOLERANCE, path: str = "") -> Iterator[str]:
    """Yield a line for each value that differs: numbers by more than `rtol`, integers and names at all."""
    if isinstance(recorded, dict) and isinstance(computed, dict):
        for key in sorted(recorded.keys() | computed.keys()):
            if key not in computed or key not in recorded:
                yield f"{path}/{key}: {'not computed' if key in recorded else 'not recorded'}"
            else:
                yield from differences(recorded[key], computed[key], rtol, f"{path}/{key}")
    elif _are_lists(recorded, computed) and len(recorded) == len(computed):
        for i, (before, now) in enumerate(zip(recorded, computed, strict=True)):
            yield from differences(before, now, rtol, f"{path}/{i}")
    elif isinstance(recorded, float) and isinstance(computed, float):
        difference = abs(computed - recorded)
        if not difference <= rtol * abs(recorded):
            yield f"{path}: recorded {recorded!r}, computed {computed!r}"
    elif recorded != computed:
        yield f"{path}: recorded {recorded}, computed {computed}"


def _are_lists(*values: Any) -> bool:
    """Return whether all are lists of lists."""
    return all(isinstance(value, list) and all(isinstance(entry, list) for entry in value) for value in values)


def _by_image(calls: Iterable[tuple[int, list[list[int]]]], counts: Sequence[int]) -> dict[str, list[list[list[int]]]]:
    """Sort the assignments by image; those of an image keep their order, which is that of the predictions."""
    assert len(set(counts)) == len(counts), "the images of a step must have different numbers of objects"
    images: dict[str, list[list[list[int]]]] = defaultdict(list)
    for count, pairs in calls:
        images[f"image {counts.index(count)}"].append(pairs)
    return dict(sorted(images.items()))


def _gradient(parameters: Sequence[Tensor]) -> dict[str, Any]:
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    return {
        "parameters": sum(p.numel() for p in parameters),
        "gradients": sum(g.numel() for g in gradients),
        "norm": float(torch.cat(gradients).norm()) if gradients else 0.0,
    }


def _batch(step: Step) -> list[dict[str, Any]]:
    batch: list[dict[str, Any]] = []
    for i, (size, objects) in enumerate(zip(step.sizes, step.objects, strict=True)):
        frames = range(FRAMES if step.is_video else 1)
        images = [deterministic.image(*size, seed=i * FRAMES + t) for t in frames]
        instances = [_instances(size, objects, t) for t in frames]
        if step.is_video:
            batch.append({"image": images, "instances": instances})
        else:
            batch.append({"image": images[0], "instances": instances[0]})
    return batch


def _instances(size: tuple[int, int], objects: Sequence[tuple[int, tuple[Box | None, ...]]], frame: int) -> Instances:
    """Return the objects of a frame; `gt_ids` are what clips need, -1 where an object is not visible."""
    boxes = [boxes[frame] for _, boxes in objects]
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for mask, box in zip(masks, boxes, strict=True):
        left, top, right, bottom = box or EMPTY
        mask[top:bottom, left:right] = True
    return Instances(
        size,
        gt_classes=torch.tensor([label for label, _ in objects], dtype=torch.int64),
        gt_masks=masks,
        gt_ids=torch.tensor([-1 if box is None else i for i, box in enumerate(boxes)], dtype=torch.int64),
    )
