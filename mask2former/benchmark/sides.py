"""Measurement of several implementations in one run: here, and the one that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from .floor import Cost, Peaks
from .measure import StepsInARow, Work, allocated, peak_memory, profile, timed_in_turn
from .report import Row, step_row

WARMUP = 3


def measure_sides(
    sides: Sequence[Callable[[], Mapping[str, Work]]],
    repeats: int,
    device: torch.device,
    *,
    images: int,
    costs: Mapping[str, Cost],
    peaks: Peaks,
) -> list[Row]:
    """Measure the memory of one side after the other, then the times of all in turn, then what a GPU does.

    The profiler comes last, because it may slow down what runs after it. `StepsInARow` are only timed: a step of theirs
    needs the memory of one alone, and the GPU does the same in it.

    Args:
        sides: each builds a model, and returns what is timed by name, `StepsInARow` after their step. Names of the
            sides after the first are "OTHER, NAME", and their rows say how many times faster NAME of the first is.
        repeats: timed runs.
        device: where they run.
        images: in each run or step.
        costs: by name; with `peaks` they give the physical floor.
        peaks: of the device.
    """
    works: dict[str, Work] = {}
    memory: dict[str, int] = {}
    for build in sides:
        others = allocated(device)
        for name, work in build().items():
            works[name] = work
            if isinstance(work, StepsInARow):
                continue
            for _ in range(WARMUP):
                work()
            memory[name] = peak_memory(work, device, others)
    seconds = timed_in_turn(works, repeats, device, warmup=1)
    rows = {}
    for name, work in works.items():
        rows[name] = step_row(
            name,
            seconds[name],
            images=images,
            memory=memory.get(name),
            activity=None if isinstance(work, StepsInARow) else profile(work, device),
            cost=costs.get(name),
            peaks=peaks,
        )
    for name, row in rows.items():
        base = rows.get(name.partition(", ")[2])
        if base is not None:
            row.add("ratio", row.value("time") / base.value("time"), "x the time here")
    return list(rows.values())
