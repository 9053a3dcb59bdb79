"""Registration in `torch.library`: schema, fake kernels, autograd, autocast, and PyTorch code as default kernel.

`torch.ops.mask2former.ms_deform_attn` exists with or without the compiled extension, so that an exported program runs
wherever this package is imported. The extension adds kernels for CPU and CUDA, which take precedence.

A process has one such op. A second copy of this package (one of them inside another project) uses that of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import ms_deform_attn_reference

_ARGUMENTS = "Tensor value, SymInt[] spatial_shapes, Tensor? reference_points, Tensor sampling, Tensor attention"
_SCHEMAS = (
    f"ms_deform_attn({_ARGUMENTS}) -> Tensor",
    f"ms_deform_attn_backward(Tensor grad, {_ARGUMENTS}, bool deterministic) -> (Tensor, Tensor, Tensor)",
)


@dataclass(frozen=True)
class Op:
    """An op of `torch.ops.mask2former`.

    Attributes:
        schema: as `torch.library` wants it.
        kernel: its code in PyTorch, for devices for which nothing is compiled.
        fake: makes its results without values.
        autograd: its backward pass, None without.
        setup: keeps what that needs, None if nothing.
    """

    schema: str
    kernel: Callable[..., Any]
    fake: Callable[..., Any]
    autograd: Callable[..., Any] | None = None
    setup: Callable[..., Any] | None = None


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


def _fake_forward(
    value: Tensor, spatial_shapes: Sequence[int], reference_points: Tensor | None, sampling: Tensor, attention: Tensor
) -> Tensor:
    batch, _, heads, dim = value.shape
    return value.new_empty(batch, sampling.shape[1], heads * dim)


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


def _autograd_twice(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("ms_deform_attn does not support double backward, as PyTorch's grid_sample does not")


def _register_autocast(library: torch.library.Library, device: str, key: str) -> None:
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

    library.impl("ms_deform_attn", kernel, key)


def _register() -> torch.library.Library:
    library = torch.library.Library("mask2former", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("ms_deform_attn", _forward, "CompositeExplicitAutograd")
    library.impl("ms_deform_attn_backward", _backward, "CompositeExplicitAutograd")
    forward, backward = "mask2former::ms_deform_attn", "mask2former::ms_deform_attn_backward"
    torch.library.register_fake(forward, _fake_forward, lib=library)
    torch.library.register_fake(backward, _fake_backward, lib=library)
    torch.library.register_autograd(forward, _autograd, setup_context=_setup_context, lib=library)
    torch.library.register_autograd(backward, _autograd_twice, lib=library)
    _register_autocast(library, "cpu", "AutocastCPU")
    _register_autocast(library, "cuda", "AutocastCUDA")
    return library


def register_ops(*ops: Op) -> None:
    """Register ops, unless another copy of this package did so, whose ops must then be the same.

    Raises:
        ImportError: that copy is another version.
    """
    first, _, _ = ops[0].schema.partition("(")
    if not hasattr(torch.ops.mask2former, first):
        library = torch.library.Library("mask2former", "FRAGMENT")
        for op in ops:
            name = op.schema.partition("(")[0]
            library.define(op.schema)
            library.impl(name, op.kernel, "CompositeExplicitAutograd")
            torch.library.register_fake(f"mask2former::{name}", op.fake, lib=library)
            if op.autograd is not None:
                torch.library.register_autograd(
                    f"mask2former::{name}", op.autograd, setup_context=op.setup, lib=library
                )
        _keep(first, library)
    check_schemas([op.schema for op in ops])


def _keep(name: str, library: torch.library.Library) -> None:
    """Keep a library for as long as the process lives: not as a global of a module, because other copies rely on it."""
    setattr(torch.ops.mask2former, f"_library_of_{name}", library)


def check_schemas(schemas: Sequence[str]) -> None:
    """Refuse the op of another version of this package, whose arguments differ."""
    for schema in schemas:
        held = str(getattr(torch.ops.mask2former, schema.partition("(")[0]).default._schema)
        if held != f"mask2former::{schema}":
            raise ImportError(
                f"this process has imported another version of mask2former, whose op {held} is not that of "
                f"{__package__}; import one of them only"
            )


FROM_OTHER_COPY = hasattr(torch.ops.mask2former, "ms_deform_attn")  # another copy of this package registered the op
if not FROM_OTHER_COPY:
    _keep("ms_deform_attn", _register())
check_schemas(_SCHEMAS)

ms_deform_attn = torch.ops.mask2former.ms_deform_attn.default
ms_deform_attn_backward = torch.ops.mask2former.ms_deform_attn_backward.default
