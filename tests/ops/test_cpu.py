"""The CPU kernels: one for each instruction set, any number of threads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.ops.cases import BF16, F32, F64, Case, error, make, run, run_reference

VARIABLE = "MASK2FORMER_CPU_ISA"


@pytest.fixture
def isa(request: pytest.FixtureRequest, cpu: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the kernels for this instruction set; skip where the machine does not support it."""
    monkeypatch.setenv(VARIABLE, "none")
    with pytest.raises(RuntimeError) as caught:
        make(Case()).call()
    if request.param not in str(caught.value).rpartition(":")[2].strip().splitlines()[0].split(", "):
        pytest.skip(f"this machine, or the library, has no {request.param}")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize(
    "case",
    [Case(dim=dim, points=points) for dim, points in ((1, 1), (5, 3), (8, 4), (32, 4), (47, 5), (64, 1), (200, 7))],
    ids=lambda case: f"{case.dim} channels, {case.points} points",
)
def test_instruction_sets_agree(case: Case, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for reference in (None, "BN", "1NL"):
        inputs = make(replace(case, dtype=dtype, reference=reference))
        found = run(inputs)
        monkeypatch.delenv(VARIABLE)
        best, expected = run(inputs), run_reference(inputs)
        monkeypatch.setenv(VARIABLE, isa)
        for name in found:
            # bf16: a last digit of fp32 may turn the rounding of the result over.
            assert error(found[name], best[name]) < (1e-6 if dtype != BF16 else 1e-3), name
            assert error(found[name], expected[name]) < (2e-6 if dtype != BF16 else 1e-2), name


@pytest.mark.parametrize("name", ["sse", "AVX2", "avx512 "])
def test_unknown_instruction_set_is_explained(name: str, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    message = re.escape(f"{VARIABLE} is '{name}'; this machine and build run: ") + "(avx512, )?(avx2, )?baseline"
    inputs = make(Case())
    with pytest.raises(RuntimeError, match=message):
        inputs.call()
    monkeypatch.setenv(VARIABLE, "")  # as if it were not there
    assert inputs.call().isfinite().all()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("reference", [None, "1N"])
@pytest.mark.parametrize("case", [Case(queries=1000, heads=1, batch=1), Case(queries=130, heads=3), Case(queries=3)])
def test_any_number_of_threads(case: Case, reference: str | None, cpu: str, threads: None) -> None:
    inputs = make(replace(case, reference=reference))
    expected = run_reference(inputs)
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        first, again = run(inputs), run(inputs)
        for name, tensor in first.items():
            assert torch.equal(tensor, again[name]), (count, name)
            assert error(tensor, expected[name]) < 1e-5, (count, name)
