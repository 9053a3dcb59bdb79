"""Mapping of a function over many files, in several processes and with a progress bar."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import cv2
import torch
from detectron2.utils import comm
from tqdm import tqdm

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_WORKERS = 16
_OPENCV_THREADS = "OPENCV_FOR_THREADS_NUM"


def usable_cores() -> int:
    """Return the number of processor cores that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_one_thread() -> None:
    """Run PyTorch's operations on the CPU in one thread, unless OMP_NUM_THREADS says otherwise.

    For a process whose model is on a GPU. With a thread on each core, those that share theirs with a data worker are
    waited for: stacking 16 small images took 136 ms instead of 0.3 ms beside busy workers (16 cores).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextlib.contextmanager
def one_opencv_thread_in_children() -> Iterator[None]:
    """Let processes that are started inside run OpenCV in one thread; by default each takes one for each core.

    This process sets it for them and takes its own number back: a forked one that sets it itself would end threads that
    were not forked with it, which hangs or kills it.
    """
    count, given = cv2.getNumThreads(), os.environ.get(_OPENCV_THREADS)
    cv2.setNumThreads(1)
    os.environ[_OPENCV_THREADS] = "1"  # what a process that is not forked starts from
    try:
        yield
    finally:
        cv2.setNumThreads(count)
        if given is None:
            del os.environ[_OPENCV_THREADS]
        else:
            os.environ[_OPENCV_THREADS] = given


def loader_workers(requested: int) -> int:
    """Return the number of workers of a data loader: at most one for each usable core, which is where PyTorch warns.

    Only for loaders whose samples and their order do not depend on the number of workers.

    Args:
        requested: DATALOADER.NUM_WORKERS, 0 or more; 0 stays 0.
    """
    cores = usable_cores()
    if requested > cores:
        _tell_fewer_workers(requested, cores)
    return min(requested, cores)


@functools.cache  # once, and not for each loader
def _tell_fewer_workers(requested: int, cores: int) -> None:
    logger.info("data loaders have %d of DATALOADER.NUM_WORKERS %d workers: one for each core", cores, requested)


def default_workers() -> int:
    """Return the number of worker processes for reading files: the available processors, shared among the ranks."""
    return max(1, min(_MOST_WORKERS, usable_cores() // comm.get_world_size()))


def map_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int | None = None
) -> Iterator[Result]:
    """Yield the results of `function`, in the order of `items`.

    Args:
        function: must be importable, because it is pickled.
        items: its arguments, one for each call.
        description: label of the progress bar.
        workers: number of worker processes; 1 runs in this process, None takes `default_workers`.

    Raises:
        Exception: whatever `function` raises.
    """
    count = min(default_workers() if workers is None else workers, len(items))
    with ProcessPoolExecutor(count, initializer=_ignore_interrupts) if count > 1 else nullcontext() as pool:
        chunk = max(1, min(32, len(items) // (4 * max(count, 1))))
        with one_opencv_thread_in_children():  # which begin with the first calls
            results = pool.map(function, items, chunksize=chunk) if pool else map(function, items)
        yield from tqdm(results, total=len(items), desc=description)


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C in a worker process: the main process ends the workers, whose tracebacks would only be noise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
