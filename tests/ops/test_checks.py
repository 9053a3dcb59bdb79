"""Arguments that do not fit are refused by name: with ValueError by the entry, with RuntimeError by the kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.ops import pytorch_backend, registration
from tests.ops.cases import F64, Case, Inputs, gradient_for, make

# B 2, S 64, N 17, heads 2, D 8, L 3, P 4
FUSED = Case(reference="BNL")
LOCATIONS = Case()

Change = Callable[[Tensor], Any]
SHAPES: dict[str, tuple[str, Change, str]] = {
    "value, 3 dimensions": ("value", lambda x: x[0], "value must be (B, S, heads, D), got (64, 2, 8)"),
    "value, a position too few": ("value", lambda x: x[:, 1:], "hold 64 positions, value has 63"),
    "value, a position too many": ("value", lambda x: x[:, [0, *range(64)]], "hold 64 positions, value has 65"),
    "value, other heads": ("value", lambda x: x[:, :, :1], "does not fit batch 2, heads 1, levels 3"),
    "sampling, 5 dimensions": ("sampling", lambda x: x[..., 0], "sampling must be (B, N, heads, L, P, 2), got"),
    "sampling, 3 coordinates": ("sampling", lambda x: x[..., [0, 1, 0]], "sampling must be (B, N, heads, L, P, 2)"),
    "sampling, batch": ("sampling", lambda x: x[:1], "sampling (1, 17, 2, 3, 4, 2) does not fit batch 2"),
    "sampling, heads": ("sampling", lambda x: x[:, :, :1], "sampling (2, 17, 1, 3, 4, 2) does not fit"),
    "sampling, levels": ("sampling", lambda x: x[:, :, :, :2], "does not fit batch 2, heads 2, levels 3"),
    "sampling, no points": ("sampling", lambda x: x[..., :0, :], "sampling must hold at least one point"),
    "attention, 4 dimensions": ("attention", lambda x: x[..., 0], "(2, 17, 2, 3, 4), got (2, 17, 2, 3)"),
    "attention, batch": ("attention", lambda x: x[:1], "attention must be (2, 17, 2, 3, 4), got (1, 17, 2, 3, 4)"),
    "attention, queries": ("attention", lambda x: x[:, 1:], "attention must be (2, 17, 2, 3, 4)"),
    "attention, points": ("attention", lambda x: x[..., 1:], "attention must be (2, 17, 2, 3, 4)"),
    "reference, 1 dimension": ("reference", lambda x: x[0, 0, 0], "reference_points must be (N, 2)"),
    "reference, batch": ("reference", lambda x: x[[0, 1, 0]], "with B 2, N 17, L 3; got (3, 17, 3, 2)"),
    "reference, queries": ("reference", lambda x: x[:, 1:], "got (2, 16, 3, 2)"),
    "reference, levels": ("reference", lambda x: x[:, :, :2], "got (2, 17, 2, 2)"),
    "reference, boxes": ("reference", lambda x: x[..., [0, 1, 0, 1]], "got (2, 17, 3, 4)"),
    "reference, queries, 2 dimensions": ("reference", lambda x: x[0, 1:, 0], "reference_points must be"),
    "reference, batch, 3 dimensions": ("reference", lambda x: x[[0, 1, 0], :, 0], "reference_points must be"),
    "no levels": ("shapes", lambda x: [], "spatial_shapes must name 1 to 32 levels, got 0"),
    "33 levels": ("shapes", lambda x: [(1, 1)] * 33, "spatial_shapes must name 1 to 32 levels, got 33"),
    "height 0": ("shapes", lambda x: [(0, 6), *x[1:]], "spatial_shapes must be positive"),
    "negative sizes": ("shapes", lambda x: [(-8, -6), *x[1:]], "spatial_shapes must be positive"),
    "other sizes": ("shapes", lambda x: [(8, 7), *x[1:]], "hold 72 positions, value has 64"),
}
KINDS: dict[str, tuple[Case, str, Change, str]] = {
    "integer value": (FUSED, "value", Tensor.long, "value must be fp32, bf16, fp16 or fp64, got torch.int64"),
    "integer offsets": (FUSED, "sampling", Tensor.int, "sampling must be fp32, bf16"),
    "boolean attention": (FUSED, "attention", Tensor.bool, "attention must be fp32, bf16"),
    "integer reference points": (FUSED, "reference", Tensor.long, "reference_points must be fp32, bf16"),
    "fp64 value": (FUSED, "value", Tensor.double, "sampling is torch.float32, value is torch.float64"),
    "fp64 locations": (LOCATIONS, "sampling", Tensor.double, "sampling is torch.float64, value is torch.float32"),
    "fp64 weights": (LOCATIONS, "attention", Tensor.double, "attention is torch.float64"),
    "fp64 reference points": (FUSED, "reference", Tensor.double, "reference_points is torch.float64"),
    "bf16 locations": (LOCATIONS, "sampling", Tensor.bfloat16, "sampling must be fp32, got torch.bfloat16"),
    "fp16 locations": (LOCATIONS, "sampling", Tensor.half, "sampling must be fp32, got torch.float16"),
    "bf16 reference points": (FUSED, "reference", Tensor.bfloat16, "reference_points must be fp32, got torch.bfloat16"),
    "value elsewhere": (FUSED, "value", lambda x: x.to("meta"), "sampling is on cpu, value on meta"),
    "offsets elsewhere": (FUSED, "sampling", lambda x: x.to("meta"), "sampling is on meta, value on cpu"),
    "attention elsewhere": (FUSED, "attention", lambda x: x.to("meta"), "attention is on meta, value on cpu"),
    "reference elsewhere": (FUSED, "reference", lambda x: x.to("meta"), "reference_points is on meta, value on cpu"),
}


def changed(inputs: Inputs, argument: str, change: Change) -> Inputs:
    return replace(inputs, **{argument: change(getattr(inputs, argument))})


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_refused(name: str) -> None:
    argument, change, message = SHAPES[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        changed(make(FUSED), argument, change).call()


@pytest.mark.parametrize("name", KINDS)
def test_kind_is_refused(name: str) -> None:
    case, argument, change, message = KINDS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        changed(make(case), argument, change).call()


@pytest.mark.parametrize("name", ["value, a position too few", "attention, points", "reference, queries"])
def test_the_pytorch_code_refuses_the_same(name: str) -> None:
    argument, change, message = SHAPES[name]
    with pytorch_backend(), pytest.raises(ValueError, match=re.escape(message)):
        changed(make(FUSED), argument, change).call()


def test_shapes_may_be_of_any_sequence_type() -> None:
    inputs = make(FUSED)
    for shapes in (tuple(inputs.shapes), list(map(torch.Size, inputs.shapes)), list(map(list, inputs.shapes))):
        assert torch.equal(replace(inputs, shapes=shapes).call(), inputs.call())


# Calls of torch.ops.mask2former.ms_deform_attn: what the message must begin with.
DIRECT = {
    "value, 3 dimensions": "value must be",
    "value, a position too few": "spatial_shapes hold 64 positions, value has 63",
    "value, other heads": "sampling does not fit value",
    "sampling, 5 dimensions": "sampling must be",
    "sampling, 3 coordinates": "sampling must be",
    "sampling, batch": "sampling does not fit",
    "sampling, levels": "sampling does not fit",
    "sampling, no points": "sampling must hold at least one point",
    "attention, 4 dimensions": "attention must be",
    "attention, batch": "attention must have the shape of sampling",
    "attention, points": "attention must have the shape of sampling",
    "reference, batch": "reference_points must be (B or 1, N, L or 1, 2)",
    "reference, queries": "reference_points must be",
    "reference, levels": "reference_points must be",
    "reference, boxes": "reference_points must be",
    "no levels": "spatial_shapes must hold 1 to 32 pairs, got 0",
    "33 levels": "spatial_shapes must hold 1 to 32 pairs, got 66",
    "height 0": "spatial_shapes must be positive",
    "negative sizes": "spatial_shapes must be positive",
    "other sizes": "spatial_shapes hold 72 positions, value has 64",
}


@pytest.mark.parametrize("name", DIRECT)
def test_direct_call_is_refused(name: str, device: str) -> None:
    argument, change, _ = SHAPES[name]
    inputs = make(FUSED, device)
    arguments = changed(inputs, argument, change).flat()
    for call in (
        lambda: registration.ms_deform_attn(*arguments),
        lambda: registration.ms_deform_attn_backward(gradient_for(inputs), *arguments, False),
    ):
        with pytest.raises(RuntimeError, match=re.escape(DIRECT[name])):
            call()


def test_direct_call_with_integers_is_refused(device: str) -> None:
    value, *others = make(FUSED, device).flat()
    with pytest.raises(RuntimeError, match="value must be fp32, bf16, fp16 or fp64"):
        registration.ms_deform_attn(value.long(), *others)


def test_direct_call_with_half_a_shape_is_refused(device: str) -> None:
    value, flat, *others = make(FUSED, device).flat()
    with pytest.raises(RuntimeError, match="spatial_shapes must hold 1 to 32 pairs, got 5 numbers"):
        registration.ms_deform_attn(value, flat[:-1], *others)


def test_direct_backward_with_another_gradient_is_refused(device: str) -> None:
    inputs = make(FUSED, device)
    for grad in (gradient_for(inputs)[:1], gradient_for(inputs)[:, 1:]):
        with pytest.raises(RuntimeError, match=re.escape("grad must be (B, N, heads * D)")):
            registration.ms_deform_attn_backward(grad, *inputs.flat(), False)


def test_fp64_is_not_refused(device: str) -> None:
    assert make(replace(FUSED, dtype=F64), device).call().dtype == F64
