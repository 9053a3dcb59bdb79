#!/usr/bin/env python
"""Masked cross-attention on a GPU: the compiled kernel beside PyTorch's attention, and the kernel of the mask.

    python tools/benchmark_attention.py

Prints microseconds of one call in bf16, medians of replays of a CUDA graph over rotating inputs. PyTorch's attention
gets the mask as a bias, which is made beforehand.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.benchmark.hardware import describe
from mask2former.ops import blocked_keys, masked_attention
from mask2former.ops.masked_attention import has_kernel, open_empty
from mask2former.utils.failures import run_program

CALLS = 20  # in one graph, each with other inputs as far as there are some
HEADS, CHANNELS = 8, 256
TOKENS = (1050, 4200, 16800)  # keys of the three levels of 800 x 1344
Inputs = tuple[Tensor, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="replays (default: 30)")
    return run_program(parser, _measure, argv)


def _measure(args: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise ValueError("this measures kernels of a GPU, and PyTorch finds none")
    print(describe(torch.device("cuda")))
    print("images queries  keys  open |  kernel PyTorch ratio | mask kernel PyTorch")
    cases = [(b, q, s, share) for b in (1, 8) for q in (100, 200) for s in TOKENS for share in (0.3, 0.01)]
    with torch.inference_mode():
        for batch, queries, keys, share in cases:
            sets = [_inputs(batch, queries, keys, share) for _ in range(6 if batch == 1 else 2)]
            if not has_kernel(*sets[0][:3]):
                raise ValueError("the op is not compiled for CUDA: run python -m mask2former.ops")
            logits = [(torch.randn(batch, queries, keys, device="cuda"),) for _ in sets]
            ours, theirs = _time(masked_attention, sets, args), _time(_attention, [_biased(x) for x in sets], args)
            mask, plain = _time(blocked_keys, logits, args), _time(_compared, logits, args)
            print(
                f"{batch:6d} {queries:7d} {keys:5d} {share:5.2f} | {ours:7.1f} {theirs:7.1f} {theirs / ours:5.1f} | "
                f"{mask:11.1f} {plain:7.1f}"
            )


def _inputs(batch: int, queries: int, keys: int, share: float) -> Inputs:
    """Make query, key, value and mask; a tenth of the queries is blocked everywhere."""
    q, k, v = (
        torch.randn(batch, n, CHANNELS, device="cuda", dtype=torch.bfloat16).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for n in (queries, keys, keys)
    )
    blocked = torch.rand(batch, queries, keys, device="cuda") >= share
    blocked |= torch.rand(batch, queries, 1, device="cuda") < 0.1
    return q, k, v, blocked[:, None]


def _biased(inputs: Inputs) -> Inputs:
    q, k, v, blocked = inputs
    return q, k, v, torch.zeros_like(blocked, dtype=q.dtype).masked_fill_(open_empty(blocked), float("-inf"))


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _compared(logits: Tensor) -> Tensor:
    return open_empty(logits.sigmoid() < 0.5)


def _time(call: Callable[..., Tensor], sets: Sequence[Inputs], args: argparse.Namespace) -> float:
    for inputs in sets[:2]:
        call(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            call(*sets[i % len(sets)])
    times = []
    for _ in range(args.repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / CALLS)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
