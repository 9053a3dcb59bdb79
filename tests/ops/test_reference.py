"""The PyTorch code against equation 3 of Deformable DETR written out in loops. Needs no compiled op."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mask2former.ops import pytorch_backend
from mask2former.ops.reference import from_projections, ms_deform_attn_reference
from tests.ops.cases import BF16, F16, F32, F64, REFERENCES, Case, Inputs, check, error, four_dimensions, make

TINY = Case(shapes=((3, 4), (1, 3), (2, 1)), queries=4, dim=3, points=2, dtype=F64)


def read(level_map: Tensor, x: float, y: float) -> Tensor:
    """Return the bilinear value of (H, W, D) at (x, y) in pixels, the center of the first at 0; zero outside."""
    total = torch.zeros(level_map.shape[2], dtype=level_map.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < level_map.shape[0] and 0 <= column < level_map.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * level_map[row, column]
    return total


def written_out(inputs: Inputs) -> Tensor:
    """Compute the op sample by sample."""
    batch, queries, heads, levels, points = inputs.attention.shape
    dim = inputs.value.shape[3]
    out = torch.zeros(batch, queries, heads, dim, dtype=F64)
    sizes = [h * w for h, w in inputs.shapes]
    for b, n, m in torch.cartesian_prod(*(torch.arange(k) for k in (batch, queries, heads))).tolist():
        weights = inputs.attention[b, n, m]
        if inputs.reference is not None:
            weights = weights.exp() / weights.exp().sum()
        for level, part in enumerate(inputs.value[b, :, m].split(sizes)):
            height, width = inputs.shapes[level]
            for p in range(points):
                x, y = inputs.sampling[b, n, m, level, p].tolist()
                if inputs.reference is None:
                    x, y = x * width, y * height
                else:
                    centers = four_dimensions(inputs.reference).expand(batch, queries, levels, 2)
                    x, y = x + centers[b, n, level, 0].item() * width, y + centers[b, n, level, 1].item() * height
                out[b, n, m] += weights[level, p] * read(part.view(height, width, dim), x - 0.5, y - 0.5)
    return out.flatten(2)


@pytest.mark.parametrize("reference", [None, *REFERENCES])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_equals_the_equation(spread: float, reference: str | None) -> None:
    inputs = make(replace(TINY, reference=reference, spread=spread))
    with pytorch_backend():
        torch.testing.assert_close(inputs.call(), written_out(inputs))


@pytest.mark.parametrize("reference", [None, "BN"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_precision(dtype: torch.dtype, reference: str | None) -> None:
    """Half-precision values are read with fp32 positions, and sums are exact to the value's precision."""
    with pytorch_backend():
        check(make(Case(shapes=((64, 128), (4, 4)), dtype=dtype, reference=reference)))


def test_projections_become_locations_and_weights() -> None:
    offsets = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=BF16).view(1, 1, 1, 1, 2, 2)
    logits = torch.tensor([0.0, math.log(3)], dtype=BF16).view(1, 1, 1, 1, 2)
    point = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    locations, weights = from_projections([(8, 6)], offsets, logits, point)  # 8 high, 6 wide
    assert locations.dtype == weights.dtype == F32
    assert locations.view(2, 2).tolist() == [[1.0, 0.25], [0.5, -0.25]]
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.25, 0.75]), rtol=0, atol=2e-3)
    _, weights = from_projections([(8, 6)], offsets.double(), logits.double(), point.double())
    assert weights.dtype == F64


def test_both_forms_are_one_function() -> None:
    inputs = make(replace(TINY, reference="BNL"))
    locations, weights = from_projections(inputs.shapes, inputs.sampling, inputs.attention, inputs.reference)
    apart = ms_deform_attn_reference(inputs.value, inputs.shapes, locations, weights)
    torch.testing.assert_close(apart, inputs.call(ms_deform_attn_reference))


def test_autocast() -> None:
    inputs = make(Case(reference="BN"))
    with pytorch_backend(), torch.autocast("cpu", BF16):
        out = inputs.call()
    assert out.dtype == BF16
    with pytorch_backend():
        assert error(out, inputs.call()) < 1e-2
