"""One function over many files, on several processes and with a progress bar."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

from detectron2.utils import comm
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_WORKERS = 16


def default_workers() -> int:
    """Processes for reading files: the processors that this process may use, shared among training processes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, usable // comm.get_world_size()))


def map_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int | None = None
) -> Iterator[Result]:
    """The results of `function`, in the order of `items`.

    Args:
        function: importable, for it is sent to the processes.
        items: what it is called with.
        description: beside the progress bar.
        workers: processes; 1 works in this one, None takes `default_workers`.

    Raises:
        Exception: whatever `function` raises.
    """
    count = min(default_workers() if workers is None else workers, len(items))
    with ProcessPoolExecutor(count, initializer=_ignore_interrupts) if count > 1 else nullcontext() as pool:
        chunk = max(1, min(32, len(items) // (4 * max(count, 1))))
        results = pool.map(function, items, chunksize=chunk) if pool else map(function, items)
        yield from tqdm(results, total=len(items), desc=description)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process; the first one ends the others, which would only add their tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
