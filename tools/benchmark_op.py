"""`tools/benchmark.py op`: deformable attention, checked against fp64 and then timed against other implementations.

The inputs are those of the pixel decoder: every pixel of a three-level pyramid is a query, with 8 heads of 32 channels
(or of `--channels`) and 4 points a level, offsets normal with a standard deviation of 3 pixels around the position of
the query.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mask2former.benchmark.floor import Cost, Peaks
from mask2former.benchmark.measure import peak_memory, profile
from mask2former.benchmark.report import Report, Row, step_row
from mask2former.ops import backend, ms_deform_attn
from mask2former.ops.reference import from_projections, ms_deform_attn_reference

HEADS, POINTS, SIGMA = 8, 4, 3.0
STRIDES = (32, 16, 8)
SETS = 3  # different inputs in rotation, so that a call does not find its data in the cache

Run = Callable[["Inputs"], Tensor]


@dataclass
class Inputs:
    """One set of inputs: raw projections, and the locations and weights that the eager chain computes from them."""

    value: Tensor
    shapes: list[tuple[int, int]]
    points: Tensor
    offsets: Tensor
    logits: Tensor
    locations: Tensor
    weights: Tensor
    grad: Tensor

    @classmethod
    def make(cls, size: int, batch: int, channels: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
        """Generate random inputs of a square pyramid of `size` pixels, with `channels` of each head."""
        shapes = [(size // s, size // s) for s in STRIDES]
        generator = torch.Generator(device).manual_seed(seed)
        count = sum(h * w for h, w in shapes)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        centers = []
        for h, w in shapes:
            y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
            centers.append(torch.stack(((x + 0.5) / w, (y + 0.5) / h), -1).flatten(0, 1))
        points = torch.cat(centers)[None, :, None]
        value = normal(batch, count, HEADS, channels).to(dtype)
        offsets = (normal(batch, count, HEADS, len(shapes), POINTS, 2) * SIGMA).to(dtype)
        logits = normal(batch, count, HEADS, len(shapes), POINTS).to(dtype)
        grad = normal(batch, count, HEADS * channels).to(dtype)
        locations, weights = from_projections(shapes, offsets, logits, points)
        return cls(value, shapes, points, offsets, logits, locations, weights, grad)

    def leaves(self, fused: bool) -> list[Tensor]:
        """Return the tensors that need gradients."""
        return [self.value, self.offsets, self.logits] if fused else [self.value, self.locations, self.weights]


def ours(x: Inputs) -> Tensor:
    """Run the op on locations and weights."""
    return ms_deform_attn(x.value, x.shapes, x.locations, x.weights)


def ours_fused(x: Inputs) -> Tensor:
    """Run the op on raw projections, with offset arithmetic and softmax fused."""
    return ms_deform_attn(x.value, x.shapes, x.offsets, x.logits, x.points)


def pytorch(x: Inputs) -> Tensor:
    """Run the PyTorch implementation on locations and weights."""
    return ms_deform_attn_reference(x.value, x.shapes, x.locations, x.weights)


def pytorch_chain(x: Inputs) -> Tensor:
    """Run the PyTorch implementation on raw projections."""
    return ms_deform_attn_reference(x.value, x.shapes, x.offsets, x.logits, x.points)


def ours_chain(x: Inputs) -> Tensor:
    """Run the op after eager offset arithmetic and softmax."""
    return ms_deform_attn(x.value, x.shapes, *from_projections(x.shapes, x.offsets, x.logits, x.points))


def deformops(device: torch.device) -> dict[str, Run]:
    """Return the implementations of PyPI's deformops, if it is installed."""
    if device.type != "cuda":
        return {}
    try:
        from deformops.registry import msda
    except ImportError:
        return {}
    tensors: dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor]] = {}

    def run(x: Inputs) -> Tensor:
        key = tuple(x.shapes)
        if key not in tensors:
            sizes = torch.tensor(x.shapes, device=device)
            tensors[key] = sizes, torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
        out = msda(x.value, *tensors[key], x.locations, x.weights.to(x.value.dtype), method="linear")
        return out.flatten(2) if out.dim() == 4 else out

    return {"deformops": run}


def forward_and_backward(run: Run, fused: bool) -> Callable[[Inputs], Any]:
    """Return a function that computes output and gradients of one input set."""

    def work(x: Inputs) -> Any:
        leaves = x.leaves(fused)
        out = run(x)
        return out, torch.autograd.grad(out, leaves, x.grad)

    return work


def time_on_gpu(work: Callable[[Inputs], Any], inputs: list[Inputs], repeats: int) -> list[float]:
    """Return the seconds of a call, from replays of a CUDA graph over all input sets."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for x in inputs:
            work(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = [work(x) for x in inputs]
    graph.replay()
    seconds = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / len(inputs))
    del kept
    return seconds


def time_on_cpu(work: Callable[[Inputs], Any], inputs: list[Inputs], repeats: int) -> list[float]:
    """Return the seconds of a call."""
    seconds = []
    for call in range(repeats + 1):
        start = time.perf_counter()
        work(inputs[call % len(inputs)])
        if call:
            seconds.append(time.perf_counter() - start)
    return seconds


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Compute the norm of the difference, relative to that of `expected` (fp64)."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def check(run: Run, fused: bool, size: int, channels: int, dtype: torch.dtype, device: torch.device) -> list[float]:
    """Return relative errors of output and gradients against the PyTorch implementation in fp64, on one image."""
    x = Inputs.make(size, 1, channels, dtype, device, seed=99)
    if fused:
        x.offsets[:, ::7] *= 50  # far outside the image
    leaves = [t.requires_grad_() for t in x.leaves(fused)]
    out = run(x)
    results = [out, *torch.autograd.grad(out, leaves, x.grad)]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    reference = x.points.double() if fused else None
    output = ms_deform_attn_reference(doubles[0], x.shapes, doubles[1], doubles[2], reference)
    expected = [output, *torch.autograd.grad(output, doubles, x.grad.double())]
    return [relative_error(a, b) for a, b in zip(results, expected, strict=True)]


def bytes_moved(x: Inputs, backward: bool) -> int:
    """Return the minimum memory traffic in bytes: each input read once and each result written once."""

    def size(*tensors: Tensor) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    forward = size(x.value, x.locations, x.weights, x.grad)
    # The backward reads the forward's inputs and the gradient again and writes three gradients.
    return forward + (size(x.value, x.locations, x.weights) * 2 + size(x.grad) if backward else 0)


def run(args: argparse.Namespace, describe: str) -> Report:
    """Check the implementations against fp64, then time them and print a table."""
    device = torch.device(args.device)
    size, batch, channels = args.size[0], args.batch, args.channels
    dtypes = [torch.float32, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    title = f"deformable attention, pyramid of {size} x {size}, batch {batch}, {HEADS} heads of {channels} channels"
    peaks = Peaks.of(device, bf16=torch.bfloat16 in dtypes)
    settings = {"size": size, "batch": batch, "channels": channels, "compile": "off"}
    report = Report("op", title, settings, device, peaks)
    implementations: dict[str, tuple[Run, bool]] = {
        "PyTorch": (pytorch, False),
        **{name: (function, False) for name, function in deformops(device).items()},
        "this op": (ours, False),
        "PyTorch chain": (pytorch_chain, True),
        "this op, eager chain": (ours_chain, True),
        "this op, fused": (ours_fused, True),
    }
    print(f"back end {backend(device.type)}; relative errors against fp64:")
    print("output, gradients of value, sampling, attention")
    for dtype in [*dtypes, torch.float16] if device.type == "cuda" else dtypes:
        for name in ("this op", "this op, fused"):
            function, fused = implementations[name]
            errors = check(function, fused, min(size, 512), channels, dtype, device)
            print(f"{name:22s} {str(dtype)[6:]:9s} " + "  ".join(f"{e:.1e}" for e in errors))
    once: list[Callable[[], Any]] = []
    for dtype in dtypes:
        inputs = [Inputs.make(size, batch, channels, dtype, device, seed) for seed in range(SETS)]
        for backward in (False, True):
            kind = ("forward + backward" if backward else "forward") + f", {str(dtype)[6:]}"
            base: dict[bool, float] = {}
            for name, (function, fused) in implementations.items():
                work = prepared(function, fused, backward)
                row = measured(f"{kind}: {name}", work, inputs, args.repeats, bytes_moved(inputs[0], backward), peaks)
                base.setdefault(fused, row.value("time"))
                row.add("ratio", base[fused] / row.value("time"), "x as fast as PyTorch")
                report.rows.append(row)
                once.append(partial(work, inputs[0]))
    for row, call in zip(report.rows, once, strict=True):  # last, because the profiler may slow down what follows
        activity = profile(call, device)
        if activity is not None:
            row.add_activity(activity)
    print(f"\n{report}")
    return report


def prepared(function: Run, fused: bool, backward: bool) -> Callable[[Inputs], Any]:
    """Return what is timed, for inputs whose tensors need gradients or not."""
    work: Callable[[Inputs], Any] = forward_and_backward(function, fused) if backward else function

    def call(x: Inputs) -> Any:
        for t in x.leaves(True) + x.leaves(False):
            t.requires_grad_(False)
        for t in x.leaves(fused):
            t.requires_grad_(backward)
        return work(x)

    return call


def measured(
    name: str, work: Callable[[Inputs], Any], inputs: list[Inputs], repeats: int, moved: int, peaks: Peaks
) -> Row:
    """Measure an implementation on all input sets; return its row."""
    device = inputs[0].value.device
    timer = time_on_gpu if device.type == "cuda" else time_on_cpu
    seconds = timer(work, inputs, repeats)
    memory = peak_memory(partial(work, inputs[0]), device)
    return step_row(name, seconds, memory=memory, cost=Cost(0, moved), peaks=peaks)
