"""Compiled deformable attention computes what the PyTorch code computes in fp64: values and all gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mask2former.ops.reference import ms_deform_attn_reference
from tests.ops.cases import (
    BF16,
    F16,
    F32,
    F64,
    REFERENCES,
    Case,
    Inputs,
    check,
    error,
    gradient_for,
    make,
    run,
    run_reference,
)

FOUR_LEVELS = ((8, 6), (4, 3), (2, 5), (2, 2))
# 16 or 32 channels, 4 points, 3 or 4 levels have kernels of their own on CUDA, with a query at each pixel yet others.
FAST = Case(heads=8, dim=32)
FAST_CASES = {
    "fast, 3 levels": FAST,
    "fast, 4 levels": replace(FAST, shapes=FOUR_LEVELS),
    "fast, grid, 3 levels": replace(FAST, queries=None),
    "fast, grid, 4 levels": replace(FAST, queries=None, shapes=FOUR_LEVELS),
    "fast, 3 images, 3 heads, grid": replace(FAST, queries=None, batch=3, heads=3),
}
FORMS = {
    "general": Case(),
    "fast": FAST,
    "grid": replace(FAST, queries=None),
    "fast, 16 channels": replace(FAST, dim=16),
    "grid, 16 channels": replace(FAST, dim=16, queries=None),
}
CASES = {
    **FAST_CASES,
    **{f"{name}, 16 channels": replace(case, dim=16) for name, case in FAST_CASES.items()},
    "thin maps": replace(FAST, shapes=((1, 7), (9, 1), (1, 1))),
    "thin maps, grid": replace(FAST, shapes=((1, 7), (9, 1), (1, 1)), queries=None),
    "many queries": Case(queries=300, batch=1),
    "1 channel": Case(heads=1, dim=1, queries=1, batch=1),
    "5 channels, 1 point, 1 level": Case(heads=3, dim=5, points=1, shapes=((5, 7),)),
    "40 channels, 5 points, 2 levels": Case(dim=40, points=5, shapes=((5, 7), (3, 2)), batch=3),
    "64 channels, 3 points": Case(dim=64, points=3),
    "300 channels": Case(heads=1, dim=300, batch=1, queries=5),
    "32 levels": Case(shapes=tuple((2 + i % 3, 1 + i % 2) for i in range(32)), points=2),
}
EMPTY = {
    "no images": Case(batch=0),
    "no queries": Case(queries=0),
    "no images, fast": replace(FAST, batch=0, queries=None),
    "no queries, fast": replace(FAST, queries=0),
}


@pytest.mark.parametrize("reference", [None, "1N"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, dtype: torch.dtype, reference: str | None, device: str) -> None:
    check(make(replace(CASES[name], dtype=dtype, reference=reference), device))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("reference", REFERENCES)
def test_reference_points_of_all_shapes(reference: str, case: Case, dtype: torch.dtype, device: str) -> None:
    check(make(replace(case, batch=3, reference=reference, dtype=dtype), device))


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("reference", [None, "BN"])
@pytest.mark.parametrize(("dtype", "projections"), [(BF16, F32), (F32, BF16), (F16, F32), (BF16, F16)], ids=str)
def test_mixed_dtypes(
    dtype: torch.dtype, projections: torch.dtype, reference: str | None, case: Case, device: str
) -> None:
    check(make(replace(case, dtype=dtype, projections=projections, reference=reference), device))


@pytest.mark.parametrize("reference", [None, "BNL"])
@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_do(name: str, reference: str | None, device: str) -> None:
    inputs = make(replace(EMPTY[name], reference=reference), device)
    found = run(inputs)
    batch, _, heads, dim = inputs.value.shape
    assert found["out"].shape == (batch, inputs.sampling.shape[1], heads * dim)
    assert all(not found[name].any() and found[name].shape == x.shape for name, x in inputs.tensors().items())


def test_large_logits_do_not_overflow(device: str) -> None:
    inputs = make(Case(reference="N"), device)
    inputs.attention[:, :, :, 0, 0] = 1e4
    inputs.attention[:, ::2, :, 1, :] = -1e4
    check(inputs)


# --- memory ---


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def shifted(x: Tensor) -> Tensor:
    """Contiguous, but not where an allocation starts."""
    return torch.cat([x.new_full((1,), math.nan), x.flatten()])[1:].view(x.shape)


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("which", ["value", "sampling", "attention", "reference", "all"])
@pytest.mark.parametrize("view", [transposed, sliced, expanded, shifted])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_views(view: Callable[[Tensor], Tensor], which: str, case: Case, dtype: torch.dtype, device: str) -> None:
    inputs = make(replace(case, reference="BN", dtype=dtype), device)
    chosen = inputs.tensors() if which == "all" else {which: inputs.tensors()[which]}
    check(replace(inputs, **{name: view(tensor) for name, tensor in chosen.items()}))


@pytest.mark.parametrize("view", [transposed, sliced, shifted, lambda x: x[:1, :1, :1].expand_as(x)])
@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
def test_views_as_gradient_of_the_output(view: Callable[[Tensor], Tensor], case: Case, device: str) -> None:
    inputs = make(case, device)
    check(inputs, view(gradient_for(inputs)))


def test_inputs_stay_as_they_are(device: str) -> None:
    inputs = make(replace(FAST, reference="BN"), device)
    before, grad = inputs.map(torch.clone), gradient_for(inputs)
    run(inputs, grad)
    assert all(torch.equal(x, y) for x, y in zip(inputs.tensors().values(), before.tensors().values()))
    assert torch.equal(grad, gradient_for(inputs))


# --- positions ---

# Powers of two: coordinates of pixels are exact in fp32.
KINDS = {name: replace(case, shapes=((8, 8), (4, 4), (2, 2))) for name, case in FORMS.items()}


def at_pixels(inputs: Inputs, pixel: Tensor) -> Inputs:
    """Return inputs with sampling points at these positions in pixels; the center of the first pixel is 0."""
    if inputs.reference is None:
        return replace(inputs, sampling=((pixel + 0.5) / sizes_of(inputs)).to(inputs.sampling.dtype))
    center = torch.full_like(inputs.reference, 0.5)
    return replace(inputs, reference=center, sampling=(pixel + 0.5 - sizes_of(inputs) / 2).to(inputs.sampling.dtype))


def sizes_of(inputs: Inputs) -> Tensor:
    """Return (L, 1, 2), (width, height) of each level."""
    return torch.tensor([(w, h) for h, w in inputs.shapes], device=inputs.value.device).view(-1, 1, 2)


@pytest.mark.parametrize("reference", [None, "BN"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_on_pixel_centers_and_borders(
    kind: str, dtype: torch.dtype, reference: str | None, device: str
) -> None:
    """Also to which side the gradient of a position looks at a kink."""
    inputs = make(replace(KINDS[kind], dtype=dtype, reference=reference), device)
    halves = (torch.rand(inputs.sampling.shape, device=device) * (2 * sizes_of(inputs) + 1)).floor() - 1
    check(at_pixels(inputs, halves / 2))  # from one border of the map to the other


@pytest.mark.parametrize("reference", [None, "BN"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_one_pixel_beside_the_map(kind: str, reference: str | None, device: str) -> None:
    """There a sample begins to see the map. The gradient of its position may look to either side."""
    inputs = make(replace(KINDS[kind], reference=reference), device)
    sizes, random = sizes_of(inputs), torch.rand(3, *inputs.sampling.shape, device=device)
    beside = torch.where(random[0] < 0.5, -1, sizes)
    inputs = at_pixels(inputs, torch.where(random[1] < 0.3, beside, random[2] * (sizes - 1)))
    found, expected = run(inputs), run_reference(inputs)
    assert found["sampling"].isfinite().all()
    assert max(error(found[name], expected[name]) for name in ("out", "value", "attention")) < 1e-5


STRANGE = [math.nan, math.inf, -math.inf, 1e9, -1e9, 1e30, -1e30, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**63]


@pytest.mark.parametrize("reference", [None, "BN"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_strange_positions_are_outside(kind: str, dtype: torch.dtype, reference: str | None, device: str) -> None:
    inputs = make(replace(KINDS[kind], dtype=dtype, reference=reference), device)
    sampling = inputs.sampling
    strange = torch.tensor(STRANGE, device=device, dtype=sampling.dtype)
    drawn = strange[torch.randint(len(STRANGE), sampling.shape, device=device)]
    chosen = torch.rand(sampling.shape, device=device) < 0.2
    outside = chosen.any(-1)
    found = run(replace(inputs, sampling=torch.where(chosen, drawn, sampling)))
    expected = run_reference(replace(inputs, sampling=torch.where(outside[..., None], 1e4, sampling)))
    assert all(x.isfinite().all() for x in found.values())
    assert not found["sampling"][outside].any()
    assert max(error(found[name], expected[name]) for name in found) < (1e-5 if dtype in (F32, F64) else 1e-2)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("kind", KINDS)
def test_strange_reference_points_are_outside(kind: str, strange: float, device: str) -> None:
    inputs = make(replace(KINDS[kind], reference="BN"), device)
    inputs.reference[:, ::3, 1] = strange
    found = run(inputs)
    assert all(x.isfinite().all() for x in found.values())
    assert not found["out"][:, ::3].any() and found["out"][:, 1::3].all(-1).any()


def test_far_values_do_not_leak(device: str) -> None:
    """A NaN in a pixel that no sample comes near to changes nothing."""
    inputs = make(FAST, device)
    inputs = replace(inputs, sampling=inputs.sampling.clamp(0.3, 0.6))
    expected = run(inputs)["out"]
    inputs.value[:, 0] = math.nan  # a corner of the first level
    torch.testing.assert_close(run(inputs)["out"], expected)


# --- properties ---

sides = st.integers(1, 6)
numbers = st.floats(-2, 3) | st.sampled_from([0.0, 1.0, 0.5, 0.25, -0.125, 1e6, -1e300, 1e-300])


@st.composite
def small_inputs(draw: st.DrawFn) -> Inputs:
    """fp64 inputs with drawn shapes, positions and weights; the value is random."""
    shapes = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=3))
    batch, queries, heads, dim, points = (draw(st.integers(1, most)) for most in (2, 3, 2, 9, 3))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, dtype=F64)
    rows = (batch, queries, heads, len(shapes), points)
    few = torch.tensor(draw(st.lists(numbers, min_size=1, max_size=8)), dtype=F64)
    sampling = few[torch.randint(len(few), (*rows, 2))]
    dims = draw(st.sampled_from([1, batch])), queries, draw(st.sampled_from([1, len(shapes)]))
    reference = torch.rand(*dims, 2, dtype=F64) if draw(st.booleans()) else None
    return Inputs(value, shapes, sampling, torch.randn(rows, dtype=F64), reference)


@given(small_inputs())
@settings(max_examples=150)
def test_any_small_input_gives_the_value_of_the_reference(cpu: str, inputs: Inputs) -> None:
    torch.testing.assert_close(inputs.call(), inputs.call(ms_deform_attn_reference), rtol=1e-9, atol=1e-9)


@given(small_inputs(), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=50)
def test_linear_in_the_value(cpu: str, inputs: Inputs, a: float, b: float) -> None:
    other = torch.randn_like(inputs.value)
    mixed = replace(inputs, value=a * inputs.value + b * other).call()
    apart = a * inputs.call() + b * replace(inputs, value=other).call()
    torch.testing.assert_close(mixed, apart, rtol=1e-9, atol=1e-9)


@given(small_inputs(), st.floats(-5, 5))
@settings(max_examples=50)
def test_constant_maps_give_the_constant(cpu: str, inputs: Inputs, constant: float) -> None:
    """Inside a map the four bilinear weights, and all weights of the softmax, sum to 1."""
    shapes = [(h + 1, w + 1) for h, w in inputs.shapes]
    batch, _, heads, dim = inputs.value.shape
    value = torch.full((batch, sum(h * w for h, w in shapes), heads, dim), constant, dtype=F64)
    weights = inputs.attention.flatten(-2).softmax(-1).view_as(inputs.attention)
    zeros = torch.zeros(inputs.sampling.shape[1], 2, dtype=F64)
    for reference, attention in ((None, weights), (zeros, inputs.attention)):
        given = Inputs(value, shapes, inputs.sampling, attention, reference)
        between = torch.rand_like(inputs.sampling) * (sizes_of(given) - 1)  # the centers of the outermost pixels
        out = at_pixels(given, between).call()
        torch.testing.assert_close(out, torch.full_like(out, constant))
