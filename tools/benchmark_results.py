#!/usr/bin/env python
"""Time post-processing: from logits on the device to a `Result` on the CPU, with kernels and without them.

    python tools/benchmark_results.py
    python tools/benchmark_results.py --size 4000 6000 --network 800 1200 --queries 200 --repeats 10

Logits are of random blobs, as many as queries, of which about --objects have a score above one half. Prints JSON: the
median, minimum and maximum in ms, and the peak memory of the device in MiB beside the logits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from mask2former.benchmark.hardware import hardware
from mask2former.modeling import device_results
from mask2former.modeling.postprocess import Settings, postprocess
from mask2former.results import Result
from mask2former.structures.classes import ClassTable
from mask2former.structures.task import IMAGE_TASKS, Task
from mask2former.utils.failures import run_program

CLASSES = 133


def make_logits(queries: int, objects: int, size: tuple[int, int], device: torch.device) -> tuple[Any, Any]:
    """Make class scores (Q, K + 1) and mask logits (Q, H4, W4) of blobs."""
    generator = torch.Generator().manual_seed(0)
    best = torch.rand(queries, generator=generator) * 0.4 + torch.where(torch.arange(queries) < objects, 0.55, 0.0)
    scores = torch.rand(queries, CLASSES + 1, generator=generator)
    scores[:, -1] = CLASSES
    scores *= (1 - best)[:, None] / scores.sum(1, keepdim=True)
    scores[torch.arange(queries), torch.randint(CLASSES, (queries,), generator=generator)] += best
    y, x = (torch.linspace(0, 1, n) for n in size)
    center, radius = (
        torch.rand(2, queries, 1, generator=generator),
        0.03 + 0.3 * torch.rand(queries, generator=generator) ** 3,
    )
    distance = (y - center[0])[:, :, None] ** 2 + (x - center[1])[:, None] ** 2
    return scores.to(device), (8 - 16 * distance.sqrt() / (2 * radius)[:, None, None]).to(device)


def measure(args: argparse.Namespace, tasks: frozenset[Task], kernels: bool) -> dict[str, Any]:
    """Time one way, and return its figures."""
    device, network, size = torch.device(args.device), tuple(args.network), tuple(args.size)
    padded = tuple(-(-n // 32) * 32 for n in network)
    scores, logits = make_logits(args.queries, args.objects, (padded[0] // 4, padded[1] // 4), device)
    s = Settings(
        tasks,
        score_threshold=0.5,
        segment_threshold=0.5,
        object_mask_threshold=0.8,
        overlap_threshold=0.8,
        semantic_scores=not kernels,
        patches=True,
    )
    image, table = np.zeros((*size, 3), np.uint8), ClassTable.numbered(CLASSES)
    device_results._DEVICES = {"cuda"} if kernels else set()
    times: list[float] = []
    on_gpu = device.type == "cuda"
    for repeat in range(args.repeats + 2):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        with torch.inference_mode():
            output = postprocess(scores, None, logits, padded, network, size, s)  # type: ignore[arg-type]
            result = Result.from_output(image, output, table, score_threshold=0.5)
        if repeat >= 2:
            times.append(1000 * (time.perf_counter() - start))
    figures = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else None
    return {name: round(x, 3) for name, x in figures.items()} | {"peak_mib": peak, "result": repr(result)}


def _run(args: argparse.Namespace) -> None:
    wanted = {"all": frozenset(IMAGE_TASKS)} | {str(task): frozenset({task}) for task in IMAGE_TASKS}
    rows = []
    for name, tasks in wanted.items():
        for kernels in (False, True):
            rows.append({"tasks": name, "kernels": kernels} | measure(args, tasks, kernels))
    print(
        json.dumps({"hardware": hardware(torch.device(args.device)), "arguments": vars(args), "rows": rows}, indent=1)
    )


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"), help="of the results")
    parser.add_argument("--network", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"), help="of its input")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_program(parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
