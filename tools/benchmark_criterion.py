"""Matching and losses: the assignment alone, then the criterion with it on the GPU and with costs copied to the CPU.

    python tools/benchmark_criterion.py                 # 8 images of 1024 x 1024 with 20 objects each
    python tools/benchmark_criterion.py --objects 100

Prints medians in ms, kernels of a forward and backward pass, and the peak memory; both ways are measured in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.modeling import matcher as matcher_module
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.ops import assigns_on, linear_assignment

LAYERS, QUERIES, CLASSES, CHANNELS = 10, 100, 80, 256
ON_GPU = matcher_module.assigns_on


def times(run: Callable[[], Any], repeats: int = 20) -> list[float]:
    """Return ms of each of `repeats` runs, which end when the GPU is done."""
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - start))
    return found


def by_scipy(cost: Tensor) -> None:
    """Copy costs to the CPU, and solve one problem after another."""
    for problem in cost.cpu().numpy():
        linear_sum_assignment(problem)


def assignments() -> None:
    """Time the op against the copy and SciPy, for costs like those of a training in progress."""
    for problems, queries, objects in ((80, 100, 20), (80, 100, 100), (80, 200, 60), (80, 300, 300), (20, 100, 1000)):
        cost = torch.randn(problems, 1, objects) + 0.05 * torch.randn(problems, queries, objects)
        cost, counts = cost.cuda(), torch.full((problems,), objects, device="cuda")
        linear_assignment(cost, counts)
        ours = statistics.median(times(partial(linear_assignment, cost, counts)))
        scipy = statistics.median(times(partial(by_scipy, cost), 3))
        print(f"{problems} x {queries} x {objects}: kernel {ours:.3f} ms, copy and SciPy {scipy:.2f} ms")


def inputs(images: int, objects: int, size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return random outputs of a decoder, and targets."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", requires_grad=True)

    steps = [
        {"pred_logits": leaf(images, QUERIES, CLASSES + 1), "pred_embeds": leaf(images, QUERIES, CHANNELS)}
        for _ in range(LAYERS)
    ]
    masks = torch.rand(objects, size // 32, size // 32, device="cuda") > 0.6
    masks = masks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels = torch.randint(CLASSES, (objects,), device="cuda")
    targets = [{"labels": labels, "masks": masks, "size": (size, size)} for _ in range(images)]
    features = leaf(images, 1, CHANNELS, size // 4, size // 4)
    return {**steps[0], "mask_features": features, "aux_outputs": steps[1:]}, targets


def criterion(images: int, objects: int, size: int) -> None:
    """Time forward and backward of the criterion."""
    outputs, targets = inputs(images, objects, size)
    leaves = [v for step in (outputs, *outputs["aux_outputs"]) for v in step.values() if isinstance(v, Tensor)]
    module = SetCriterion(CLASSES, HungarianMatcher(2, 5, 5), {}, 0.1).cuda()

    def run() -> None:
        losses = module.views(outputs, targets)
        torch.stack(list(losses.values())).sum().backward()

    ways: dict[str, Callable[..., bool]] = {"GPU": ON_GPU, "CPU": lambda *_: False}
    found: dict[str, list[float]] = {name: [] for name in ways}
    queued: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(12):
        for name, way in ways.items():
            matcher_module.assigns_on = way
            for tensor in leaves:
                tensor.grad = None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run()
            host = 1000 * (time.perf_counter() - start)
            torch.cuda.synchronize()
            if turn >= 2:
                found[name].append(1000 * (time.perf_counter() - start))
                queued[name].append(host)
    for name, way in ways.items():
        matcher_module.assigns_on = way
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
        kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        print(
            f"{images} images, {objects} objects, assignment on {name}: {statistics.median(found[name]):.2f} ms "
            f"(host {statistics.median(queued[name]):.2f} ms), {len(kernels)} kernels and copies, "
            f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f} GiB"
        )
        if name == "GPU":
            print(
                profile.key_averages().table(sort_by="self_device_time_total", row_limit=15, max_name_column_width=60)
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--size", type=int, default=1024)
    args = parser.parse_args()
    if not (torch.cuda.is_available() and assigns_on("cuda", 1, 1)):
        raise SystemExit("needs a GPU and the compiled op: make ops")
    assignments()
    criterion(args.images, args.objects, args.size)


if __name__ == "__main__":
    main()
