"""Registration in `torch.library`: schema, fake kernels, autograd, autocast, and PyTorch code as default kernel.

`torch.ops.mask2former.ms_deform_attn` exists with or without the compiled extension, so that an exported program runs
wherever this package is imported. The extension adds kernels for CPU and CUDA, which take precedence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import ms_deform_attn_reference

_ARGUMENTS = "Tensor value, SymInt[] spatial_shapes, Tensor? reference_points, Tensor sampling, Tensor attention"
_library = torch.library.Library("mask2former", "DEF")
_library.define(f"ms_deform_attn({_ARGUMENTS}) -> Tensor")
_library.define(f"ms_deform_attn_backward(Tensor grad, {_ARGUMENTS}, bool deterministic) -> (Tensor, Tensor, Tensor)")

ms_deform_attn = torch.ops.mask2former.ms_deform_attn.default
ms_deform_attn_backward = torch.ops.mask2former.ms_deform_attn_backward.default

Gradients = tuple[Tensor, Tensor, Tensor]


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _forward(
    value: Tensor, spatial_shapes: Sequence[int], reference_points: Tensor | None, sampling: Tensor, attention: Tensor
) -> Tensor:
    out = ms_deform_attn_reference(value, _pairs(spatial_shapes), sampling, attention, reference_points)
    return out.contiguous()


def _backward(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    sampling: Tensor,
    attention: Tensor,
    deterministic: bool,
) -> Gradients:
    inputs = [t.detach().requires_grad_() for t in (value, sampling, attention)]
    # The dispatcher excludes autograd in kernels, but this one needs it.
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    autograd = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    with torch.enable_grad(), torch._C._ForceDispatchKeyGuard(included, excluded - autograd):
        out = ms_deform_attn_reference(inputs[0], _pairs(spatial_shapes), inputs[1], inputs[2], reference_points)
    grads = torch.autograd.grad(out, inputs, grad)
    return grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()


_library.impl("ms_deform_attn", _forward, "CompositeExplicitAutograd")
_library.impl("ms_deform_attn_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("mask2former::ms_deform_attn", lib=_library)
def _fake_forward(
    value: Tensor, spatial_shapes: Sequence[int], reference_points: Tensor | None, sampling: Tensor, attention: Tensor
) -> Tensor:
    batch, _, heads, dim = value.shape
    return value.new_empty(batch, sampling.shape[1], heads * dim)


@torch.library.register_fake("mask2former::ms_deform_attn_backward", lib=_library)
def _fake_backward(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    sampling: Tensor,
    attention: Tensor,
    deterministic: bool,
) -> Gradients:
    return value.new_empty(value.shape), sampling.new_empty(sampling.shape), attention.new_empty(attention.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, spatial_shapes, reference_points, sampling, attention = inputs
    ctx.spatial_shapes = spatial_shapes
    ctx.save_for_backward(value, reference_points, sampling, attention)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, reference_points, sampling, attention = ctx.saved_tensors
    grad_value, grad_sampling, grad_attention = ms_deform_attn_backward(
        grad,
        value,
        ctx.spatial_shapes,
        reference_points,
        sampling,
        attention,
        torch.are_deterministic_algorithms_enabled(),
    )
    grad_reference = None
    if reference_points is not None and ctx.needs_input_grad[2]:
        grad_reference = _reference_gradient(grad_sampling, reference_points, ctx.spatial_shapes)
    return grad_value, None, grad_reference, grad_sampling, grad_attention


def _reference_gradient(grad_offsets: Tensor, reference_points: Tensor, spatial_shapes: Sequence[int]) -> Tensor:
    """Return the gradient of the reference points, each of which shifts all its samples; offsets are in pixels."""
    dtype, device = reference_points.dtype, grad_offsets.device
    # From scalars: a tensor from a Python list would be a synchronizing copy, which a CUDA graph cannot capture.
    sizes = torch.stack(
        [torch.full((), n, dtype=dtype, device=device) for h, w in _pairs(spatial_shapes) for n in (w, h)]
    )
    grad = (grad_offsets.to(dtype).sum(4) * sizes.view(-1, 2)).sum(2)  # (B, N, L, 2)
    return grad.sum_to_size(reference_points.shape)


torch.library.register_autograd("mask2former::ms_deform_attn", _autograd, setup_context=_setup_context, lib=_library)


def _autograd_twice(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("ms_deform_attn does not support double backward, as PyTorch's grid_sample does not")


torch.library.register_autograd("mask2former::ms_deform_attn_backward", _autograd_twice, lib=_library)


def _register_autocast(device: str, key: str) -> None:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(
        value: Tensor,
        spatial_shapes: Sequence[int],
        reference_points: Tensor | None,
        sampling: Tensor,
        attention: Tensor,
    ) -> Tensor:
        if value.dtype != torch.float64:
            value = value.to(torch.get_autocast_dtype(device))
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return ms_deform_attn(value, spatial_shapes, reference_points, sampling, attention)

    _library.impl("ms_deform_attn", kernel, key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
