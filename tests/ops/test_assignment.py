"""Linear assignment: the kernel's algorithm on the CPU, the op on every device, against SciPy."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.installation.toolchain import Unavailable, find_compiler
from mask2former.ops import assignment, assigns_on, extension, linear_assignment

HERE = Path(__file__).parent
SPECIAL = np.array([np.inf, -np.inf, np.nan], np.float32)
Solve = Callable[[np.ndarray, int], np.ndarray]


def total(cost: np.ndarray, queries: np.ndarray, objects: np.ndarray) -> float:
    return float(np.nan_to_num(cost.astype(np.float64), nan=1e8, posinf=1e8, neginf=-1e8)[queries, objects].sum())


def best(cost: np.ndarray) -> float:
    finite = np.nan_to_num(cost, nan=1e8, posinf=1e8, neginf=-1e8)
    return total(cost, *linear_sum_assignment(finite))


def is_best(cost: np.ndarray, queries: np.ndarray, objects: np.ndarray) -> bool:
    """Return whether min(Q, N) pairs of different queries and objects have the smallest cost."""
    count = min(cost.shape)
    assert len(set(queries.tolist())) == len(set(objects.tolist())) == len(queries) == count
    return total(cost, queries, objects) == pytest.approx(best(cost), rel=1e-6, abs=1e-6)


# --- the algorithm of the kernel ---


@pytest.fixture(scope="module")
def solve(tmp_path_factory: pytest.TempPathFactory) -> Solve:
    """Compile the kernel's algorithm for the CPU; return a function of costs (rows, columns) and a number of lanes."""
    try:
        compiler = find_compiler()
    except Unavailable as reason:
        pytest.skip(str(reason))
    library = tmp_path_factory.mktemp("assignment") / "assignment.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*compiler, *flags, str(HERE / "assignment_host.cpp"), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).assign_rows
    function.restype = None

    def call(cost: np.ndarray, lanes: int) -> np.ndarray:
        given = np.ascontiguousarray(cost, np.float32)
        columns = np.full(len(given), -1, np.int32)
        function(given.ctypes.data_as(ctypes.c_void_p), *given.shape, lanes, columns.ctypes.data_as(ctypes.c_void_p))
        return columns

    return call


@st.composite
def costs(draw: st.DrawFn) -> np.ndarray:
    """Draw costs (rows, columns), at least as many columns: with ties, of all magnitudes, some not finite."""
    rows = draw(st.integers(0, 12))
    columns = draw(st.integers(max(rows, 1), 16))
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "ties", "magnitudes", "same", "like training"]))
    if kind == "normal":
        cost = g.normal(size=(rows, columns))
    elif kind == "ties":
        cost = g.integers(0, 3, (rows, columns)).astype(float)
    elif kind == "magnitudes":
        cost = g.normal(size=(rows, columns)) * 10.0 ** g.integers(-6, 6, (rows, columns))
    elif kind == "same":
        cost = np.full((rows, columns), float(g.normal()))
    else:  # one good pair a row, and queries that are alike
        cost = 5 + g.normal(size=(rows, 1)) + 1e-3 * g.normal(size=(rows, columns))
        cost[np.arange(rows), g.permutation(columns)[:rows]] -= 4
    bad = g.random((rows, columns)) < draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))
    return np.where(bad, g.choice(SPECIAL, (rows, columns)), cost).astype(np.float32)


@given(cost=costs(), lanes=st.sampled_from([1, 1, 2, 5]))
@settings(max_examples=150)
def test_algorithm_finds_the_best(solve: Solve, cost: np.ndarray, lanes: int) -> None:
    assert is_best(cost, np.arange(len(cost)), solve(cost, lanes))


@pytest.mark.parametrize(("rows", "columns"), [(100, 100), (20, 300), (250, 260)])
@pytest.mark.parametrize("levels", [0, 10], ids=["random", "ties"])
def test_algorithm_of_large_problems(solve: Solve, rows: int, columns: int, levels: int) -> None:
    g = np.random.default_rng(rows)
    cost = g.normal(size=(rows, columns)).astype(np.float32) if not levels else g.integers(0, levels, (rows, columns))
    assert is_best(cost, np.arange(rows), solve(cost, 1))


def test_lanes_may_be_more_than_columns(solve: Solve) -> None:
    cost = np.random.default_rng(0).normal(size=(3, 4))
    assert is_best(cost, np.arange(3), solve(cost, 7))


# --- the op ---

# Numbers of problems, queries and columns; the counts are drawn between 0 and the columns.
SIZES = {
    "training": (80, 100, 20),
    "crowded": (20, 100, 150),
    "square": (10, 100, 100),
    "one query": (5, 1, 4),
    "one object": (5, 7, 1),
    "no objects": (5, 7, 0),
    "no queries": (3, 0, 4),
    "no problems": (0, 7, 3),
    "four warps": (6, 300, 40),
    "four warps, crowded": (4, 30, 700),
}
LARGE = {
    "most queries": (2, 1024, 60),
    "most objects": (2, 200, 1024),
    "not in shared memory": (3, 600, 500),
    "largest": (2, 1024, 1024),
}


def make(problems: int, queries: int, objects: int, seed: int = 0, levels: int = 0) -> tuple[Tensor, Tensor]:
    """Return costs with `levels` different values (0: random), and counts, among them 0 and all columns."""
    g = torch.Generator().manual_seed(seed)
    shape = problems, queries, objects
    cost = torch.randint(levels, shape, generator=g).float() if levels else torch.randn(shape, generator=g)
    counts = torch.randint(objects + 1, (problems,), generator=g)
    if problems > 1:
        counts[0], counts[1] = objects, 0
    return cost, counts


def check(cost: Tensor, counts: Tensor, device: str) -> None:
    found = linear_assignment(cost.to(device), counts.to(device))
    assert found.dtype == torch.int64 and found.shape == (len(cost), cost.shape[2]) and found.device.type == device
    for problem, count, row in zip(cost.numpy(), counts.tolist(), found.cpu().numpy(), strict=True):
        assert (row[count:] == -1).all()
        objects = np.flatnonzero(row >= 0)
        assert is_best(problem[:, :count], row[objects], objects)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not assigns_on("cuda", 1, 1):
        pytest.skip(f"no compiled op for cuda: {extension.EXTENSIONS['cuda'].problem}")
    return request.param


@pytest.fixture
def cuda() -> str:
    if not assigns_on("cuda", 1, 1):
        pytest.skip(f"no compiled op for cuda: {extension.EXTENSIONS['cuda'].problem}")
    return "cuda"


@pytest.mark.parametrize("levels", [0, 1, 4])
@pytest.mark.parametrize("name", SIZES)
def test_op_finds_the_best(name: str, levels: int, kind: str) -> None:
    check(*make(*SIZES[name], levels=levels), kind)


@pytest.mark.gpu
@pytest.mark.parametrize("levels", [0, 5])
@pytest.mark.parametrize("name", LARGE)
def test_large_problems_of_a_gpu(name: str, levels: int, cuda: str) -> None:
    check(*make(*LARGE[name], levels=levels), cuda)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(20))
def test_many_random_problems_of_a_gpu(seed: int, cuda: str) -> None:
    """200 problems a call, of sizes around those of a warp, and costs like those of a trained model."""
    g = torch.Generator().manual_seed(seed)
    queries, objects = (int(torch.randint(1, most, (), generator=g)) for most in (140, 70))
    cost, counts = make(200, queries, objects, seed)
    check(cost * 0.01 + torch.randn(200, 1, objects, generator=g), counts, cuda)


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_costs_that_are_not_finite(share: float, kind: str) -> None:
    cost, counts = make(12, 9, 14)
    g = torch.Generator().manual_seed(1)
    bad = torch.rand(cost.shape, generator=g) < share
    check(torch.where(bad, torch.from_numpy(SPECIAL)[torch.randint(3, cost.shape, generator=g)], cost), counts, kind)


def test_ignored_columns_may_hold_anything(kind: str) -> None:
    cost, counts = make(8, 10, 6)
    expected = linear_assignment(cost.to(kind), counts.to(kind))
    cost[torch.arange(6) >= counts[:, None, None].expand_as(cost)] = -torch.inf
    assert torch.equal(linear_assignment(cost.to(kind), counts.to(kind)), expected)


def test_other_strides_and_dtypes(kind: str) -> None:
    cost, counts = make(6, 20, 8)
    expected = linear_assignment(cost.to(kind), counts.to(kind))
    for same in (cost.double(), cost.mT.contiguous().mT, cost.repeat(1, 2, 2)[:, :20, :8]):
        assert torch.equal(linear_assignment(same.to(kind), counts.to(kind)), expected)


def test_numbers_of_one_query_each(kind: str) -> None:
    cost = torch.tensor([[[4.0, 1.0, 9.0], [2.0, 0.0, 9.0], [3.0, 2.0, 9.0]]], device=kind)
    found = linear_assignment(cost, torch.tensor([2], device=kind))
    assert found.tolist() == [[1, 0, -1]]


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"cost must be \(M, Q, N\) float, got \(3, 4\)"):
        linear_assignment(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"counts must be \(3,\) int64 on cpu, got \(2,\)"):
        linear_assignment(torch.zeros(3, 4, 5), torch.zeros(2, dtype=torch.int64))


def test_op_in_graphs(kind: str) -> None:
    cost, counts = (x.to(kind) for x in make(3, 5, 4))
    results = torch.library.opcheck(torch.ops.mask2former.linear_assignment.default, (cost, counts))
    assert set(results.values()) == {"SUCCESS"}


def test_sizes_of_the_kernel() -> None:
    """Both sources name the largest size, and the cost that replaces those that are not finite."""
    sources = [(Path(assignment.__file__).parent / "csrc/cuda" / name).read_text() for name in SOURCES]
    assert f"kMaxAssigned = {assignment.MAX_SIDE};" in sources[0]
    assert f"kWorstCost = {assignment.WORST:.0e}f;".replace("e+08", "e8") in sources[1]
    assert not assigns_on("cpu", 1, 1)


SOURCES = ("assignment.h", "assignment.cuh")


@pytest.mark.gpu
def test_above_the_limit_scipy_serves(cuda: str) -> None:
    assert not assigns_on("cuda", assignment.MAX_SIDE + 1, 1) and not assigns_on("cuda", 1, assignment.MAX_SIDE + 1)
    check(*make(2, 1100, 5), cuda)
    with pytest.raises(RuntimeError, match="at most 1024"):
        torch.ops.mask2former.linear_assignment(torch.zeros(1, 1025, 1, device=cuda), torch.ones(1, device=cuda).long())


@pytest.mark.gpu
def test_assignments_repeat(cuda: str) -> None:
    cost, counts = (x.to(cuda) for x in make(40, 100, 60, levels=3))
    first = linear_assignment(cost, counts)
    assert all(torch.equal(linear_assignment(cost, counts), first) for _ in range(20))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(80, 100, 20), (4, 300, 320)], ids=["warp", "block"])
def test_cuda_graph(size: tuple[int, int, int], cuda: str) -> None:
    """Captured once, replayed with other costs and counts, and without a wait."""
    static_cost, static_counts = (x.to(cuda) for x in make(*size))
    linear_assignment(static_cost, static_counts)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            out = linear_assignment(static_cost, static_counts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for seed in (5, 6):
        cost, counts = make(*size, seed=seed)
        static_cost.copy_(cost)
        static_counts.copy_(counts)
        graph.replay()
        for problem, count, row in zip(cost.numpy(), counts.tolist(), out.cpu().numpy(), strict=True):
            objects = np.flatnonzero(row >= 0)
            assert (row[count:] == -1).all() and is_best(problem[:, :count], row[objects], objects)
