"""Times, memory, and the summary of a profile."""

from __future__ import annotations

import pytest
import torch

from mask2former.benchmark.measure import (
    Event,
    activity,
    covered,
    peak_memory,
    peak_resident,
    profile,
    timed,
    timed_in_turn,
)

CPU = torch.device("cpu")
STEP = "mask2former benchmark step"


def test_works_are_timed_in_turn_after_a_warmup() -> None:
    calls: list[str] = []
    seconds = timed_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU, warmup=1)
    assert "".join(calls) == "abababab"
    assert [len(seconds[name]) for name in "ab"] == [3, 3]
    assert all(second >= 0 for second in timed(lambda: None, 2, CPU))


def test_covered_counts_overlaps_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 9), (0, 4), (2, 6), (3, 4), (20, 21)]) == 10


def test_what_happens_between_steps_is_not_counted() -> None:
    events = [
        Event(STEP, 0, 100, False),
        Event("cudaLaunchKernel", 10, 12, False),
        Event("cudaGraphLaunch", 20, 22, False),
        Event("cudaStreamSynchronize", 50, 90, False),
        Event("cudaDeviceSynchronize", 101, 140, False),  # of the benchmark
        Event(STEP, 200, 300, False),
        Event("cudaMemcpyAsync", 210, 220, False),
        Event("gemm", 30, 130, True),
        Event("relu", 120, 140, True),
        Event("Memcpy DtoH (Device -> Pageable)", 230, 250, True),
    ]
    found = activity(events, 2)
    assert (found.kernels, found.copies, found.launches, found.waits) == (1, 0.5, 1, 0.5)
    assert found.busy == pytest.approx((110 + 20) / 1e9 / 2)


def test_memory_of_the_process() -> None:
    kept = []
    before = peak_memory(lambda: None, CPU)
    assert peak_memory(lambda: kept.append(torch.ones(2**24)), CPU) >= before + 2**25
    assert peak_resident() > 2**26


def test_no_profile_without_a_gpu() -> None:
    assert profile(lambda: None, CPU) is None


@pytest.mark.gpu
def test_kernels_and_waits_of_a_gpu() -> None:
    device = torch.device("cuda")
    x = torch.randn(512, 512, device=device)

    def work() -> None:
        y = x @ x
        y.sum().item()

    work()
    found = profile(work, device)
    assert found is not None
    assert 2 <= found.kernels <= 6 and found.copies >= 1  # cuBLAS may clear its workspace
    assert found.waits == 1 and found.launches >= 2
    assert 0 < found.busy < 0.1


@pytest.mark.gpu
def test_kernels_of_a_graph_are_counted() -> None:
    device = torch.device("cuda")
    x = torch.ones(64, device=device)
    graph = torch.cuda.CUDAGraph()
    x.add_(1)
    with torch.cuda.graph(graph):
        for _ in range(10):
            x.add_(1)
    found = profile(graph.replay, device)
    assert found is not None
    assert found.kernels == 10 and found.launches == 1 and found.waits == 0


@pytest.mark.gpu
def test_memory_of_a_gpu() -> None:
    device = torch.device("cuda")
    base = torch.cuda.memory_allocated(device)
    assert peak_memory(lambda: torch.empty(2**20, device=device), device, base) == 2**22
