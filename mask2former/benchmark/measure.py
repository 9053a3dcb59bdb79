"""Times, peak memory, and what the GPU does in one step."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .kernels import kind_of

Work = Callable[[], Any]

_STEP = "mask2former benchmark step"
_LONGEST = 25  # kernels that a report names
# Runtime calls in which the host waits for the GPU. A copy from or to pageable memory ends with the first of them.
WAITS = frozenset({"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"})


@dataclass(frozen=True)
class StepsInARow:
    """Work of several steps without a wait between them, as a training takes them: the host prepares the next one.

    Attributes:
        step: one of them.
        steps: how many there are.
    """

    step: Work
    steps: int = 10

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.step()


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Work, repeats: int, device: torch.device, warmup: int = 2) -> list[float]:
    """Time `repeats` runs in seconds, after `warmup` others; of `StepsInARow` the seconds of a step."""
    return timed_in_turn({"": work}, repeats, device, warmup)[""]


def timed_in_turn(
    works: Mapping[str, Work], repeats: int, device: torch.device, warmup: int = 2
) -> dict[str, list[float]]:
    """Time several works in seconds, one run of each in turn, so that all see the same load of the machine.

    Args:
        works: by name.
        repeats: timed runs of each.
        warmup: runs of each before them: memory is allocated, kernels are selected and compiled.

    Returns:
        The seconds of each run, by name; of `StepsInARow` the mean of its steps.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for run in range(-warmup, repeats):
        for name, work in works.items():
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            if run >= 0:
                steps = work.steps if isinstance(work, StepsInARow) else 1
                seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def peak_memory(work: Work, device: torch.device, others: int = 0) -> int:
    """Run `work` once; return the peak in bytes: what PyTorch allocated and graphs hold on a GPU, else the process.

    Args:
        work: has run before, and captures no graph any more: a capture allocates what its graph then holds, and both
            would be counted.
        device: where it runs.
        others: bytes on the GPU that belong to something else, as `allocated` counts them.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        wait(device)
        return torch.cuda.max_memory_allocated(device) + held_by_graphs(device) - others
    # Linux can start the count at zero; elsewhere it is the peak since the process has begun.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    work()
    return peak_resident()


def allocated(device: torch.device) -> int:
    """Return the bytes that PyTorch has allocated, and that graphs hold, on a GPU; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) + held_by_graphs(device) if device.type == "cuda" else 0


def held_by_graphs(device: torch.device) -> int:
    """Return the bytes on a GPU that CUDA graphs hold and PyTorch does not count as allocated.

    The activations of a graph live in a private pool. After the capture their tensors are gone, so that they are not
    allocated any more, but every replay writes there and nobody else may: the unallocated rest of the segments of
    private pools. Segments are larger than what is in them, by a few MiB each. Cached memory is released first, since
    pools whose graphs are gone would be counted otherwise.
    """
    torch.cuda.empty_cache()
    index = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == index and tuple(segment["segment_pool_id"]) != (0, 0)
    )


def peak_resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next((x for x in status.read_text().splitlines() if x.startswith("VmHWM")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Activity:
    """What a GPU does in one step, on average.

    Attributes:
        kernels: kernels that ran, those of graphs included.
        copies: copies and fills of memory.
        launches: calls of the host that start a kernel or a graph.
        waits: calls in which the host waits for the GPU.
        busy: seconds in which the GPU has work.
        kinds: seconds of the kernels and copies of each kind, of `kernels.KINDS`, the longest first; together more than
            `busy` where some run side by side.
        longest: name, seconds and number of the kernels that take the most time.
    """

    kernels: float
    copies: float
    launches: float
    waits: float
    busy: float
    kinds: Mapping[str, float] = field(default_factory=dict)
    longest: Sequence[tuple[str, float, float]] = ()


@dataclass(frozen=True)
class Event:
    """An event of a profile: nanoseconds from `start` to `end`; `on_gpu` or in the host."""

    name: str
    start: int
    end: int
    on_gpu: bool


def profile(work: Work, device: torch.device, steps: int = 3) -> Activity | None:
    """Count what a GPU does in a step of `work`, which has run before; None on other devices.

    The profiler slows the host down, not the kernels: divide `busy` by the time of a step without it.
    """
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiler

    wait(device)
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            with record_function(_STEP):
                work()
            wait(device)
    return activity(list(_events(found)), steps)


def _events(found: Any) -> Iterator[Event]:
    for event in found.profiler.kineto_results.events():
        on_gpu = "CUDA" in str(event.device_type())
        if on_gpu and (event.name() == _STEP or getattr(event, "is_user_annotation", bool)()):
            continue  # what an annotation of the host spans on the GPU
        yield Event(event.name(), event.start_ns(), event.start_ns() + event.duration_ns(), on_gpu)


def activity(events: Sequence[Event], steps: int) -> Activity:
    """Summarize the events of some steps. What the host does between them is not counted."""
    spans = [(e.start, e.end) for e in events if e.name == _STEP and not e.on_gpu]
    calls = [e.name for e in events if not e.on_gpu and any(start <= e.start < end for start, end in spans)]
    device = [e for e in events if e.on_gpu]
    copies = sum(e.name.startswith(("Memcpy", "Memset")) for e in device)
    times: Counter[str] = Counter()
    for event in device:
        times[event.name] += event.end - event.start
    numbers = Counter(event.name for event in device)
    kinds: Counter[str] = Counter()
    for name, spent in times.items():
        kinds[kind_of(name)] += spent
    return Activity(
        kernels=(len(device) - copies) / steps,
        copies=copies / steps,
        launches=sum(_is_launch(name) for name in calls) / steps,
        waits=sum(name in WAITS for name in calls) / steps,
        busy=covered([(e.start, e.end) for e in device]) / 1e9 / steps,
        kinds={kind: spent / 1e9 / steps for kind, spent in kinds.most_common()},
        longest=[(name, spent / 1e9 / steps, numbers[name] / steps) for name, spent in times.most_common(_LONGEST)],
    )


def _is_launch(name: str) -> bool:
    return name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"))


def covered(spans: Sequence[tuple[int, int]]) -> int:
    """Return the length of the union of some intervals."""
    total, reached = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
