#!/usr/bin/env python
"""Time PyTorch and exported files of a model side by side, on the CPU: alternating runs, the minimum of each.

    OMP_NUM_THREADS=2 python tools/benchmark_export.py --size 480 640 --formats onnx aoti

The weights are random: speed does not depend on them. A file is compared with PyTorch before it is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from detectron2.modeling import build_model

from mask2former.config import load_config
from mask2former.export.check import compare, example_inputs
from mask2former.export.formats import FORMATS, Run
from mask2former.export.network import ExportNetwork

CONFIG = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"


def main() -> None:
    """Export, compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=CONFIG)
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--post", default="instance")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=["onnx", "aoti"])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    torch.manual_seed(0)
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *args.opts])
    network = ExportNetwork(build_model(cfg), args.post)
    inputs = example_inputs(network, (1, 3, *args.size), 0, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as directory:
        runs: dict[str, Run] = {"pytorch": lambda values: network(*values)}
        for name in args.formats:
            start = time.perf_counter()
            path = Path(directory) / f"model{FORMATS[name].suffix}"
            FORMATS[name].write(network, inputs, path, False)
            runs[name] = FORMATS[name].load(path, network)
            seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
            print(f"{name}: made in {seconds:.0f} s, {size:.0f} MB; {compare(network, runs[name], inputs)}", flush=True)
        times = measure(runs, inputs, args.runs)
    print(
        f"{torch.get_num_threads()} threads, {args.size[0]} x {args.size[1]}, minimum of {args.runs} alternating runs"
    )
    for name, (wall, cpu) in times.items():
        print(f"{name:14} {wall * 1e3:8.0f} ms  {times['pytorch'][0] / wall:5.2f} x   CPU time {cpu * 1e3:8.0f} ms")


@torch.inference_mode()
def measure(runs: Mapping[str, Run], inputs: tuple[torch.Tensor, ...], count: int) -> dict[str, tuple[float, float]]:
    """Return the smallest wall and CPU seconds of each, which run in turn."""
    best = {name: (float("inf"), float("inf")) for name in runs}
    for _ in range(count + 1):  # the first one is a warm-up
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(inputs)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = (min(best[name][0], spent[0]), min(best[name][1], spent[1]))
    return best


if __name__ == "__main__":
    main()
