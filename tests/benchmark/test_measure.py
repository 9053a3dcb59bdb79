"""Times, memory, and the summary of a profile."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest
import torch

from mask2former.benchmark.kernels import KINDS, kind_of
from mask2former.benchmark.measure import (
    Event,
    StepsInARow,
    activity,
    allocated,
    covered,
    held_by_graphs,
    peak_memory,
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


def test_steps_in_a_row_are_timed_together_without_a_wait_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("mask2former.benchmark.measure.wait", lambda device: calls.append("|"))
    monkeypatch.setattr("time.perf_counter", lambda: float(calls.count("s")))  # a step takes a second
    step = StepsInARow(lambda: calls.append("s"), 4)
    assert timed(step, 2, CPU, warmup=1) == [1.0, 1.0]
    assert "".join(calls) == "|ssss|" * 3


def test_steps_in_a_row_are_ten() -> None:
    calls: list[int] = []
    StepsInARow(lambda: calls.append(1))()
    assert len(calls) == 10


def _segment(device: int, pool: tuple[int, int], total: int, used: int) -> dict[str, Any]:
    return {"device": device, "segment_pool_id": pool, "total_size": total, "allocated_size": used}


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let PyTorch tell of two GPUs with graphs; the list says in which order it was asked."""
    asked: list[str] = []
    segments = [
        _segment(1, (0, 0), 1000, 400),  # of nobody's graph: the rest is free for all
        _segment(1, (0, 1), 700, 100),
        _segment(1, (3, 0), 50, 0),
        _segment(0, (0, 2), 9000, 5),
    ]
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: asked.append("release"))
    monkeypatch.setattr("torch.cuda.memory_snapshot", lambda: asked.append("snapshot") or segments)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 500)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 800)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: asked.append("reset"))
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    return asked


def test_what_graphs_hold_is_the_rest_of_their_private_pools(snapshot: list[str]) -> None:
    assert held_by_graphs(torch.device("cuda", 1)) == 600 + 50
    assert snapshot == ["release", "snapshot"]  # else pools of graphs that are gone would count
    assert held_by_graphs(torch.device("cuda")) == 8995  # the current one


def test_peak_memory_and_that_of_others_count_what_graphs_hold(snapshot: list[str]) -> None:
    device = torch.device("cuda", 1)
    assert allocated(device) == 500 + 650
    assert peak_memory(lambda: snapshot.append("work"), device) == 800 + 650
    assert snapshot[-4:] == ["reset", "work", "release", "snapshot"]
    assert peak_memory(lambda: None, device, allocated(device)) == 300
    assert allocated(CPU) == 0


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
    assert found.kinds == pytest.approx(
        {"matrix products": 50e-9, "copies and casts": 10e-9, "other operations": 10e-9}
    )
    assert [(name, count) for name, _, count in found.longest] == [
        ("gemm", 0.5),
        ("relu", 0.5),
        ("Memcpy DtoH (Device -> Pageable)", 0.5),
    ]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        (
            "void mask2former::(anonymous namespace)::forward_kernel<__nv_bfloat16, 32>(float const*)",
            "deformable attention",
        ),
        ("void mask2former::(anonymous namespace)::attend_kernel<64>(Arguments)", "masked attention"),
        ("mask2former::(anonymous namespace)::assignment_kernel(float const*, int)", "masks and matching"),
        ("void mask2former::(anonymous namespace)::losses_backward_kernel<unsigned char>(int)", "masks and matching"),
        ("triton_poi_fused_convolution_relu_3", "compiled operations"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<float>(float*)", "copies and casts"),
        ("nvjet_tst_128x64_64x9_1x2_h_bz_TNT", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "attention of PyTorch"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda()>", "copies and casts"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>()", "optimizer"),
        ("void at::native::multi_tensor_apply_kernel<CopyFunctor<c10::BFloat16, float>>()", "copies and casts"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>()", "other operations"),
        ("", "other operations"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
            "TensorListMetadata<2>, at::native::(anonymous namespace)::CopyFunctor<c10::BFloat16, float, 2, 1, 1> >()",
            "copies and casts",
        ),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind and kind in KINDS


def test_memory_of_the_process() -> None:
    # In a process of its own: where the count cannot start at zero, larger tensors of other tests would hide this one.
    code = """
import torch
from mask2former.benchmark.measure import peak_memory, peak_resident
kept, cpu = [], torch.device("cpu")
before = peak_memory(lambda: None, cpu)
print(peak_memory(lambda: kept.append(torch.ones(2**24)), cpu) - before, peak_resident())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    grown, peak = map(int, printed.split())
    assert grown >= 2**25 and peak > 2**26


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
    gc.collect()  # what earlier tests have left could go at any time
    base = torch.cuda.memory_allocated(device)
    held = held_by_graphs(device)
    assert peak_memory(lambda: torch.empty(2**20, device=device), device, base + held) == 2**22


@pytest.mark.gpu
def test_activations_of_a_graph_are_counted_until_it_is_gone() -> None:
    device, size = torch.device("cuda"), 2**26
    x = torch.ones(1, device=device)

    def work() -> None:
        torch.sum(torch.ones(size // 4, device=device), (0,), out=x[0])

    work()  # kernels are loaded outside of the capture
    torch.cuda.synchronize()
    gc.collect()  # what earlier tests have left could go at any time
    before = allocated(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    assert torch.cuda.memory_allocated(device) < before + size
    assert before + size <= allocated(device) < before + 2 * size
    assert size <= peak_memory(graph.replay, device, before) < 2 * size
    del graph
    assert allocated(device) < before + size
