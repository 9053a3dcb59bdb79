"""The op in torch.library: autograd, tracing, export, autocast, determinism."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from mask2former.ops import ms_deform_attn, registration
from tests.ops.cases import (
    BF16,
    F16,
    F32,
    F64,
    REFERENCES,
    Case,
    Inputs,
    error,
    gradient_for,
    make,
    run,
    run_reference,
)

FAST = Case(heads=8, dim=32)
SMALL = Case(shapes=((4, 5), (3, 2)), queries=3, dim=5, points=2, dtype=F64)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# --- gradients ---


@pytest.mark.parametrize("reference", [None, *REFERENCES])
def test_gradcheck(reference: str | None, device: str) -> None:
    inputs = make(replace(SMALL, reference=reference, spread=1.0), device)
    names = list(inputs.tensors())

    def call(*tensors: Tensor) -> Tensor:
        return replace(inputs, **dict(zip(names, tensors))).call()

    # Samples keep a thousandth of a pixel from kinks; one step must stay within. Sums on CUDA vary in the last digits.
    leaves = inputs.leaves().tensors().values()
    assert torch.autograd.gradcheck(call, tuple(leaves), eps=1e-6, atol=1e-6, nondet_tol=1e-10)


def test_gradients_of_some_inputs_only(device: str) -> None:
    inputs = make(replace(FAST, reference="1N"), device)
    expected = run(inputs)
    for name, tensor in inputs.tensors().items():
        leaf = tensor.detach().clone().requires_grad_()
        replace(inputs, **{name: leaf}).call().backward(gradient_for(inputs))
        torch.testing.assert_close(leaf.grad, expected[name])
    assert not inputs.call().requires_grad


@pytest.mark.parametrize("reference", [None, "1N"])
def test_second_derivative_is_refused(reference: str | None, device: str) -> None:
    inputs = make(replace(SMALL, reference=reference), device).leaves()
    (grad,) = torch.autograd.grad(inputs.call().square().sum(), inputs.value, create_graph=True)
    with pytest.raises(RuntimeError, match="ms_deform_attn does not support double backward"):
        grad.sum().backward()


@pytest.mark.parametrize("reference", [None, "BN1", "1NL"])
def test_code_for_other_devices(reference: str | None) -> None:
    """The kernels in PyTorch, which serve where no library is, give what autograd gives."""
    inputs = make(replace(SMALL, reference=reference))
    grad, expected, flat = gradient_for(inputs), run_reference(inputs), inputs.flat()
    torch.testing.assert_close(registration._forward(*flat), expected["out"])
    found = registration._backward(grad, *flat, False)
    for name, tensor in zip(("value", "sampling", "attention"), found, strict=True):
        torch.testing.assert_close(tensor, expected[name])
        assert tensor.is_contiguous() and not tensor.requires_grad


# --- graphs ---

TRACED = {
    "locations": Case(),
    "fused": Case(reference="1N1"),
    "fused, batch and levels, fast": replace(FAST, reference="BNL"),
    "bf16": replace(FAST, reference="1N1", dtype=BF16, queries=None),
    "fp64": replace(SMALL, reference="BN1"),
}


@pytest.mark.parametrize("name", TRACED)
def test_opcheck_forward(name: str, device: str) -> None:
    results = torch.library.opcheck(registration.ms_deform_attn, make(TRACED[name], device).leaves().flat())
    assert set(results.values()) == {"SUCCESS"} and len(results) >= 4


@pytest.mark.parametrize("name", ["locations", "fused", "fp64"])
def test_opcheck_backward(name: str, device: str) -> None:
    inputs = make(TRACED[name], device)
    arguments = gradient_for(inputs), *inputs.flat(), False
    assert set(torch.library.opcheck(registration.ms_deform_attn_backward, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", TRACED)
def test_compiled_graph_equals_eager(name: str, device: str) -> None:
    torch.compiler.reset()
    inputs = make(TRACED[name], device)
    graph = torch.compile(ms_deform_attn, backend="aot_eager", fullgraph=True)
    for key, tensor in run(inputs, op=graph).items():
        torch.testing.assert_close(tensor, run(inputs)[key], msg=key)


class Attention(nn.Module):
    """Maps and queries in, sampled features out: shapes come from the tensors."""

    def __init__(self, channels: int = 16, heads: int = 2, points: int = 3) -> None:
        super().__init__()
        self.rows = heads, 2, points
        self.offsets = nn.Linear(channels, heads * 2 * points * 2)
        self.logits = nn.Linear(channels, heads * 2 * points)

    def forward(self, large: Tensor, small: Tensor, queries: Tensor, reference: Tensor) -> Tensor:
        shapes = [(x.shape[2], x.shape[3]) for x in (large, small)]
        value = torch.cat([x.flatten(2) for x in (large, small)], 2).transpose(1, 2).unflatten(2, (self.rows[0], -1))
        offsets = self.offsets(queries).unflatten(2, (*self.rows, 2))
        return ms_deform_attn(value, shapes, offsets, self.logits(queries).unflatten(2, self.rows), reference)


def attention_inputs(device: str, height: int, width: int, queries: int) -> tuple[Tensor, ...]:
    maps = [torch.randn(2, 16, h, w, device=device) for h, w in ((2 * height, 2 * width), (height, width))]
    return *maps, torch.randn(2, queries, 16, device=device), torch.rand(queries, 2, device=device)


def test_one_graph_for_all_sizes(device: str) -> None:
    torch.compiler.reset()
    module, count = Attention().to(device), torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    graph = torch.compile(module, backend=count, fullgraph=True, dynamic=True)
    for sizes in ((4, 5, 7), (3, 6, 9), (5, 2, 40)):
        inputs = attention_inputs(device, *sizes)
        inputs[-1].requires_grad_()
        wanted = [inputs[-1], *module.parameters()]
        eager, ours = module(*inputs), graph(*inputs)
        torch.testing.assert_close(ours, eager)
        for a, b in zip(*(torch.autograd.grad(out.square().sum(), wanted) for out in (ours, eager))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert count.frame_count == 1


def test_export_round_trip(device: str) -> None:
    module = Attention().to(device).eval()
    height, width, queries = (torch.export.Dim(name, min=2, max=64) for name in ("height", "width", "queries"))
    dims = {2: 2 * height, 3: 2 * width}, {2: height, 3: width}, {1: queries}, {0: queries}
    program = torch.export.export(module, attention_inputs(device, 4, 5, 7), dynamic_shapes=dims)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    calls = [node.target for node in loaded.graph.nodes if "mask2former" in str(node.target)]
    assert calls == [registration.ms_deform_attn]
    inputs = attention_inputs(device, 3, 8, 11)
    torch.testing.assert_close(loaded.module()(*inputs), module(*inputs))


# --- autocast ---


def by_entry(inputs: Inputs) -> Tensor:
    return inputs.call()


def by_dispatcher(inputs: Inputs) -> Tensor:
    return registration.ms_deform_attn(*inputs.flat())


@pytest.mark.parametrize("call", [by_entry, by_dispatcher])
@pytest.mark.parametrize("reference", [None, "BN"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_autocast_casts_the_value_only(
    dtype: torch.dtype, reference: str | None, call: Callable[[Inputs], Tensor], device: str
) -> None:
    inputs = make(replace(FAST, reference=reference), device)
    low = replace(inputs, value=inputs.value.to(dtype))
    with torch.autocast(device, dtype):
        found = call(inputs)
        kept = call(make(replace(SMALL, reference=reference), device))
    assert found.dtype == dtype and kept.dtype == F64
    assert torch.equal(found, low.call())
    rounded = "sampling" if reference is None else "reference"
    coarse = replace(low, **{rounded: inputs.tensors()[rounded].to(dtype).float()})
    assert error(coarse.call(), found) > 1e-3  # what a cast of the coordinates would have done


@pytest.mark.parametrize("reference", [None, "BN"])
def test_gradients_under_autocast(reference: str | None, device: str) -> None:
    inputs = make(replace(FAST, reference=reference), device)
    grad = gradient_for(inputs).to(BF16)
    with torch.autocast(device, BF16):
        found = run(inputs, grad)
    assert [x.dtype for x in found.values()] == [BF16, *[F32] * (len(found) - 1)]
    expected = run_reference(inputs, grad)
    assert max(error(found[name], expected[name]) for name in found) < 1e-2
    torch.compiler.reset()
    with torch.autocast(device, BF16):
        traced = run(inputs, grad, torch.compile(ms_deform_attn, backend="aot_eager", fullgraph=True))
    for name, tensor in traced.items():
        torch.testing.assert_close(tensor, found[name], msg=name)


# --- determinism ---


@pytest.mark.parametrize("reference", [None, "1N"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("queries", [300, None], ids=["queries", "grid"])
def test_deterministic_gradients_repeat(
    queries: int | None, dtype: torch.dtype, reference: str | None, deterministic: None, device: str
) -> None:
    shapes = ((16, 16), (8, 8), (4, 4)) if device == "cpu" else ((48, 40), (24, 20), (12, 10))
    inputs = make(replace(FAST, shapes=shapes, queries=queries, reference=reference, dtype=dtype), device)
    first = run(inputs)
    for _ in range(3):
        assert all(torch.equal(tensor, first[name]) for name, tensor in run(inputs).items())
    torch.use_deterministic_algorithms(False)
    ordinary = run(inputs)
    for name in first:
        assert error(first[name], ordinary[name]) < (1e-5 if dtype in (F32, F64) else 1e-2), name


@pytest.mark.parametrize("reference", [None, "1N"])
def test_deterministic_gradients_of_all_magnitudes(reference: str | None, deterministic: None, device: str) -> None:
    inputs = make(replace(FAST, queries=200, reference=reference), device)
    grad = gradient_for(inputs)
    scales = 10 ** torch.linspace(-3, 3, grad.shape[2], device=device)  # a channel each, so small sums stay small
    found = run(inputs, grad * scales)
    torch.use_deterministic_algorithms(False)
    expected = run_reference(inputs, grad * scales)
    assert max(error(found[name], expected[name]) for name in found) < 1e-5
    for channel in (0, 1, 100, 255):
        pair = (x["value"].flatten(2)[:, :, channel] for x in (found, expected))
        assert error(*pair) < 1e-5, channel


@pytest.mark.parametrize("mode", [False, True], ids=["ordinary", "deterministic"])
@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_gradient_that_is_not_finite_shows(strange: float, mode: bool, deterministic: None, device: str) -> None:
    inputs = make(FAST, device)
    torch.use_deterministic_algorithms(mode)
    grad = gradient_for(inputs)
    grad[0, 3, 5] = strange
    found = run(inputs, grad)
    assert not found["value"].isfinite().all() and not found["sampling"].isfinite().all()


@pytest.mark.parametrize("name", ["linear_assignment", "sample_masks", "binary_masks", "masked_attention"])
def test_each_op_of_another_version_is_refused(name: str) -> None:
    """The other version registered the op first, with other arguments."""
    schema = f"{name}(Tensor other) -> Tensor"
    with pytest.raises(ImportError, match=f"imported another version of mask2former, whose op mask2former::{name}"):
        registration.register_ops(registration.Op(schema, lambda x: x, lambda x: x))
