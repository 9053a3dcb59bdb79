"""The physical floor of a step: its FLOPs at the peak of the device, and its bytes at the device's bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .measure import Work, wait

# Dense bf16 FLOP/s of a large matrix product, and bytes/s of a large copy (reads and writes), both as measured. Without
# autocast tensor cores compute fp32 in TF32 at half that rate, where it is on.
_PEAKS = {
    "H200": (790e12, 4.2e12),
    "H100": (790e12, 2.97e12),
}


@dataclass(frozen=True)
class Peaks:
    """What a device can do at most.

    Attributes:
        flops: FLOP/s, where a multiply-add is two.
        bandwidth: bytes/s, reads and writes together.
        source: "table", or "measured" in this process.
    """

    flops: float
    bandwidth: float
    source: str

    @classmethod
    def of(cls, device: torch.device, bf16: bool) -> Peaks:
        """Return the peaks of a device: of the table, or measured in about a second."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        for part, (flops, bandwidth) in _PEAKS.items():
            if part in name:
                return cls(flops if bf16 else flops / 2, bandwidth, "table")
        return cls(_matrix_product(device, bf16), copy_bandwidth(device), "measured")


@dataclass(frozen=True)
class Cost:
    """What a step computes and moves at least.

    Attributes:
        flops: of matrix products, convolutions and attention, a multiply-add as two.
        bytes: their operands, read once, and their results, written once; also those of deformable attention. All
            else is taken to be fused into them.
    """

    flops: int
    bytes: int

    def seconds(self, peaks: Peaks) -> float:
        """Return the time below which no step can be: FLOPs or bytes, whichever takes longer."""
        return max(self.flops / peaks.flops, self.bytes / peaks.bandwidth)


def cost(work: Work) -> Cost:
    """Run `work` once, and count. What a compiled part or a graph computes is not seen: `work` must be eager."""
    moved = 0

    def counting(formula: Callable[..., int] | None) -> Callable[..., int]:
        def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
            nonlocal moved
            given = {name: value for name, value in kwargs.items() if name != "out"}  # which is the result
            moved += _bytes(args) + _bytes(tuple(given.values())) + _bytes(out_val)
            # Formulas of products do not know the type of the result.
            known = [value for value in args if not isinstance(value, torch.dtype)]
            return formula(*known, out_val=out_val, **given) if formula is not None else 0

        count._get_raw = True  # type: ignore[attr-defined]  # tensors, not their shapes
        return count

    ops: dict[Any, Any] = {op: counting(formula) for op, formula in flop_registry.items()}
    ops |= {
        getattr(torch.ops.mask2former, name): counting(None) for name in ("ms_deform_attn", "ms_deform_attn_backward")
    }
    ops[torch.ops.mask2former.masked_attention] = counting(_attention)
    with FlopCounterMode(display=False, custom_mapping=ops) as counter:
        work()
    return Cost(int(counter.get_total_flops()), moved)


def _attention(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    return 4 * query.numel() * key.shape[2]


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _matrix_product(device: torch.device, bf16: bool) -> float:
    """Measure the FLOP/s of a large matrix product."""
    edge = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    return 2 * edge**3 / _fastest(lambda: a @ b, device)


def copy_bandwidth(device: torch.device) -> float:
    """Measure the bytes per second of a large copy, counting reads and writes."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Work, device: torch.device, repeats: int = 6) -> float:
    """Return the seconds of the fastest of some runs, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
