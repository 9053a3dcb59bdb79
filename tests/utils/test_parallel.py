from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator

import cv2
import pytest
import torch

from mask2former.utils import parallel
from mask2former.utils.parallel import default_workers, loader_workers, map_parallel, usable_cores, use_one_thread


def _process(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 3, None])
def test_results_come_in_order(workers: int | None) -> None:
    numbers = list(range(40))
    assert list(map_parallel(math.factorial, numbers, "test", workers)) == [math.factorial(n) for n in numbers]
    assert list(map_parallel(math.factorial, [], "test", workers)) == []


def test_processes() -> None:
    assert set(map_parallel(_process, [1, 2, 3], "test", 1)) == {os.getpid()}
    assert os.getpid() not in set(map_parallel(_process, list(range(8)), "test", 2))


def _opencv_threads(_: int) -> int:
    return cv2.getNumThreads()


def test_processes_keep_to_their_core() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        assert set(map_parallel(_opencv_threads, [1, 2, 3], "test", 2)) == {1}
        assert set(map_parallel(_opencv_threads, [1, 2, 3], "test", 1)) == {3} and cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_reach_the_caller(workers: int) -> None:
    with pytest.raises(ValueError, match="nonnegative|negative"):
        list(map_parallel(math.factorial, [1, 2, -1], "test", workers))


def test_processes_are_shared_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert default_workers() == 12
    monkeypatch.setattr(parallel.comm, "get_world_size", lambda: 4)
    assert default_workers() == 3
    monkeypatch.setattr(parallel.comm, "get_world_size", lambda: 24)
    assert default_workers() == 1


def test_loaders_have_a_worker_for_each_core_at_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    parallel._tell_fewer_workers.cache_clear()
    assert usable_cores() == 2
    with caplog.at_level(logging.INFO):
        assert [loader_workers(number) for number in (0, 1, 2)] == [0, 1, 2] and not caplog.records
        assert [loader_workers(8) for _ in range(3)] == [2, 2, 2]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "2 of DATALOADER.NUM_WORKERS 8 workers" in caplog.text
    parallel._tell_fewer_workers.cache_clear()


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(parallel.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 3)
    assert usable_cores() == 3
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.fixture
def threads() -> Iterator[int]:
    """The number of threads of an operation, which is put back after the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "expected"), [(None, 1), ("2", 2)])
def test_one_thread_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, threads: int, given: str | None, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    use_one_thread()
    assert torch.get_num_threads() == expected
