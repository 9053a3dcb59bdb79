"""Features of CUDA only: several kernels for one op, streams, graphs, devices, tensors of many gigabytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.ops.cases import (
    BF16,
    F16,
    F32,
    F64,
    Case,
    Inputs,
    check,
    error,
    gradient_for,
    make,
    off_the_edges,
    pixel_centers,
    run,
    run_reference,
)

pytestmark = pytest.mark.gpu

THREE, FOUR = ((64, 48), (32, 24), (16, 12)), ((64, 48), (32, 24), (16, 12), (8, 6))
UNEVEN = ((37, 61), (19, 31), (10, 16))  # tiles of queries are cut off at the borders
FAST = Case(shapes=THREE, heads=8, dim=32, reference="1N1")
GRID = replace(FAST, queries=None)
SMALL_CASES = {
    "fast": Case(heads=8, dim=32),
    "grid": Case(heads=8, dim=32, queries=None, dtype=BF16),
    "fast, 16 channels": Case(heads=8, dim=16, dtype=BF16),
    "grid, 16 channels": Case(heads=8, dim=16, queries=None),
    "general": Case(shapes=((4, 5), (3, 2)), queries=3, dim=5, points=2, dtype=F64),
}
with_16_or_32_channels = pytest.mark.parametrize("dim", [32, 16])

# --- kernels ---

# 16 or 32 channels, 4 points, 3 or 4 levels take the fast path: one kernel for values, and where each pixel has a query
# one for gradients. That one keeps lists of samples for a window of 48 x 48 pixels; long offsets leave it. The rest
# takes the general kernels, as fp64 does.
KERNELS_FOR_32_CHANNELS = {
    "grid": GRID,
    "grid, 4 levels": replace(GRID, shapes=FOUR),
    "grid, uneven": replace(GRID, shapes=UNEVEN, reference="BNL"),
    "grid, 3 images, 3 heads": replace(GRID, batch=3, heads=3, reference="BN"),
    "grid, locations": replace(GRID, reference=None),
    "grid, short offsets": replace(GRID, spread=0.5),
    "grid, some outside the window": replace(GRID, spread=12.0),
    "grid, many outside the window": replace(GRID, spread=40.0),
    "grid, 4 levels, locations, many outside": replace(GRID, shapes=FOUR, reference=None, spread=40.0),
    "grid, levels of one size": replace(GRID, shapes=((20, 20),) * 3),
    "grid, small level first": replace(GRID, shapes=THREE[::-1]),
    "grid, least sizes": replace(GRID, shapes=((2, 2), (2, 3), (3, 2))),
    "grid, wide and high": replace(GRID, shapes=((2, 150), (120, 2), (40, 3))),
    "queries": replace(FAST, queries=1000),
    "queries, 4 levels, locations": replace(FAST, queries=257, shapes=FOUR, reference=None),
    "1 query": replace(FAST, queries=1),
}
KERNELS = {
    **KERNELS_FOR_32_CHANNELS,
    **{f"{name}, 16 channels": replace(case, dim=16) for name, case in KERNELS_FOR_32_CHANNELS.items()},
    "general: 1 level": replace(FAST, shapes=THREE[:1], queries=1000),
    "general: 2 levels, grid": replace(GRID, shapes=THREE[:2]),
    "general: a map of width 1": replace(GRID, shapes=(*THREE[:2], (16, 1))),
    "general: 8 channels": replace(GRID, dim=8),
    "general: 64 channels": replace(GRID, dim=64),
    "general: 5 points": replace(FAST, points=5, queries=300),
    "general: 1 point, 40 channels": replace(FAST, points=1, dim=40, queries=300),
}


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel(name: str, dtype: torch.dtype, cuda: str) -> None:
    check(make(replace(KERNELS[name], dtype=dtype), cuda))


@with_16_or_32_channels
@pytest.mark.parametrize("case", [GRID, replace(GRID, shapes=UNEVEN), replace(FAST, queries=1000)])
@pytest.mark.parametrize(("dtype", "projections"), [(BF16, F32), (F16, F32), (F32, BF16)], ids=str)
def test_every_kernel_with_mixed_dtypes(
    dtype: torch.dtype, projections: torch.dtype, case: Case, dim: int, cuda: str
) -> None:
    check(make(replace(case, dim=dim, dtype=dtype, projections=projections), cuda))


@with_16_or_32_channels
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_all_queries_at_one_place(spread: float, dtype: torch.dtype, dim: int, cuda: str) -> None:
    """One pixel then collects thousands of gradients."""
    case = replace(GRID, dim=dim, dtype=dtype, spread=spread)
    inputs = make(case)
    assert inputs.reference is not None
    spot = torch.tensor([0.301, 0.703]).expand_as(inputs.reference).contiguous()
    sampling = off_the_edges(inputs.sampling, spot, case.shapes, torch.Generator().manual_seed(0))
    check(replace(inputs, reference=spot, sampling=sampling).map(lambda x: x.to(cuda)))


# --- streams, graphs, devices ---


@with_16_or_32_channels
@pytest.mark.parametrize("queries", [40, None], ids=["queries", "grid"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_cuda_graph(dtype: torch.dtype, queries: int | None, dim: int, cuda: str) -> None:
    """Captured once, replayed with other numbers; the gradient of the reference points too."""
    case = replace(FAST, shapes=((24, 20), (12, 10), (6, 5)), queries=queries, dim=dim, dtype=dtype, reference="1N1")
    static, grad = make(case, cuda).leaves(), gradient_for(make(case, cuda))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch wants it: once outside of the capture
        run(static, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = static.call()
        grads = torch.autograd.grad(out, list(static.tensors().values()), grad)
    for seed in (5, 6):
        fresh = make(case, cuda, seed)
        with torch.no_grad():
            for to, new in zip(static.tensors().values(), fresh.tensors().values()):
                to.copy_(new)
        graph.replay()
        expected = run(fresh, grad)
        for name, tensor in zip(expected, (out, *grads)):
            assert error(tensor, expected[name]) < (1e-5 if dtype in (F32, F64) else 1e-2), name


@pytest.mark.parametrize("case", SMALL_CASES.values(), ids=SMALL_CASES)
def test_work_is_queued_on_the_current_stream(case: Case, cuda: str) -> None:
    inputs = make(case, cuda)
    expected = run_reference(inputs)
    late = inputs.map(torch.zeros_like)
    grad = gradient_for(inputs)
    run(inputs)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # work on another stream would see the zeros
        for to, new in zip(late.tensors().values(), inputs.tensors().values()):
            to.copy_(new)
        found = run(late, grad)
    torch.cuda.synchronize()
    assert max(error(found[name], expected[name]) for name in found) < 1e-2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("case", SMALL_CASES.values(), ids=SMALL_CASES)
def test_second_gpu(case: Case, cuda: str) -> None:
    assert torch.cuda.current_device() == 0
    inputs = make(replace(case, reference="BN"), "cuda:1")
    check(inputs)
    assert inputs.call().device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="attention is on cuda:0, value on cuda:1"):
        replace(inputs, attention=inputs.attention.to("cuda:0")).call()


# --- large tensors ---

PYRAMID = ((64, 64), (32, 32), (16, 16))
LARGE = {  # with the gigabytes of GPU memory that it takes
    "queries": (Case(PYRAMID, 1600, 7, 8, 32, reference="1N1"), 30),
    "grid": (Case(PYRAMID, 1600, None, 8, 32, reference="1N1"), 60),
    "one image": (Case(((4096, 2049),), 1, 7, 8, 32, reference="1N1"), 30),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_more_than_two_to_the_31_elements(name: str, cuda: str) -> None:
    case, gigabytes = LARGE[name]
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory")
    inputs = large_inputs(case, cuda)
    assert inputs.value.numel() > 2**31
    grad = torch.randn(case.batch, inputs.sampling.shape[1], case.heads * case.dim, dtype=BF16, device=cuda)
    found = run(inputs, grad)
    for image in {0, case.batch - 1}:
        one = slice(image, image + 1)
        part = replace(inputs, value=inputs.value[one], sampling=inputs.sampling[one], attention=inputs.attention[one])
        expected = run_reference(part if case.batch > 1 else last_rows(part, 512), grad[one])
        rows = expected["value"].shape[1]
        assert error(found["value"][one, -rows:], expected["value"]) < 1e-2, image
        assert not found["value"][one, :-rows].any(), image
        for key in ("out", "sampling", "attention"):
            assert error(found[key][one], expected[key]) < 1e-2, (image, key)


def large_inputs(case: Case, device: str) -> Inputs:
    """As `make`, in bf16, made on the device. Other queries than the pixels look at the last tenth of the maps."""
    length = sum(h * w for h, w in case.shapes)
    grid = case.queries is None
    reference = pixel_centers(case.shapes) if grid else 0.9 + 0.1 * torch.rand(case.queries or 0, 2)
    rows = (case.batch, len(reference), case.heads, len(case.shapes), case.points)
    value, sampling, attention = (
        torch.randn(shape, dtype=BF16, device=device)
        for shape in ((case.batch, length, case.heads, case.dim), (*rows, 2), rows)
    )
    return Inputs(value, list(case.shapes), sampling, attention, reference.float().to(device).view(1, -1, 1, 2))


def last_rows(inputs: Inputs, rows: int) -> Inputs:
    """The same samples on the lower part of their only map."""
    assert inputs.reference is not None
    ((height, width),) = inputs.shapes
    reference = inputs.reference.double().clone()
    reference[..., 1] = (reference[..., 1] * height - (height - rows)) / rows
    return replace(inputs, value=inputs.value[:, -rows * width :], shapes=[(rows, width)], reference=reference)
