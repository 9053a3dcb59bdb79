"""Inputs of deformable attention, its results with gradients, and how far these are from the fp64 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mask2former.ops import ms_deform_attn
from mask2former.ops.reference import ms_deform_attn_reference

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TOLERANCE = {F32: 1e-5, F64: 1e-12, BF16: 1e-2, F16: 1e-2}

# Accepted shapes of reference points, by the names of the dimensions before (x, y).
REFERENCES = ("N", "1N", "BN", "1N1", "BN1", "1NL", "BNL")


@dataclass(frozen=True)
class Case:
    """The sizes of a call.

    Attributes:
        queries: N, or None for a query at each pixel of the maps.
        reference: one of REFERENCES for the fused form; None for the form with locations and weights.
        projections: dtype of offsets and logits, or of the weights in the other form; None: that of the value.
        spread: standard deviation of the offsets, in pixels.
    """

    shapes: tuple[tuple[int, int], ...] = ((8, 6), (4, 3), (2, 2))
    batch: int = 2
    queries: int | None = 17
    heads: int = 2
    dim: int = 8
    points: int = 4
    reference: str | None = None
    dtype: torch.dtype = F32
    projections: torch.dtype | None = None
    spread: float = 2.0


@dataclass(frozen=True)
class Inputs:
    """Arguments of the op."""

    value: Tensor
    shapes: list[tuple[int, int]]
    sampling: Tensor
    attention: Tensor
    reference: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        named = {"value": self.value, "sampling": self.sampling, "attention": self.attention}
        return named if self.reference is None else {**named, "reference": self.reference}

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def leaves(self) -> Inputs:
        """Return the same memory as tensors that require gradients."""
        return self.map(lambda x: x.detach().requires_grad_())

    def call(self, op: Callable[..., Tensor] = ms_deform_attn) -> Tensor:
        return op(self.value, self.shapes, self.sampling, self.attention, self.reference)

    def flat(self) -> tuple[Tensor, list[int], Tensor | None, Tensor, Tensor]:
        """Return the arguments of `torch.ops.mask2former.ms_deform_attn`."""
        reference = None if self.reference is None else four_dimensions(self.reference)
        return self.value, [n for shape in self.shapes for n in shape], reference, self.sampling, self.attention


def four_dimensions(reference: Tensor) -> Tensor:
    """Expand reference points of any accepted shape to (B or 1, N, L or 1, 2)."""
    reference = reference[None] if reference.dim() == 2 else reference
    return reference[:, :, None] if reference.dim() == 3 else reference


def make(case: Case, device: str = "cpu", seed: int = 0) -> Inputs:
    """Return random inputs, of which a few samples are outside their map.

    None is so near to the center line of a pixel that rounding could move it to the next pixel: the gradient of its
    position would jump.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    length = sum(h * w for h, w in case.shapes)
    queries = length if case.queries is None else case.queries
    dims = {"B": case.batch, "N": queries, "L": len(case.shapes), "1": 1}
    name = case.reference or "BNL"
    centers = pixel_centers(case.shapes) if case.queries is None else torch.rand(queries, 2, generator=generator)
    noise = normal(dims["B" if "B" in name else "1"], queries, dims["L" if "L" in name else "1"], 2)
    reference = (centers.view(1, -1, 1, 2) + 0.05 * noise).view(*(dims[letter] for letter in name), 2)
    coordinates = F64 if case.dtype == F64 else F32
    reference = reference.to(coordinates)

    projections = case.projections or case.dtype
    value = normal(case.batch, length, case.heads, case.dim).to(case.dtype)
    rows = (case.batch, queries, case.heads, len(case.shapes), case.points)
    offsets, logits = normal(*rows, 2) * case.spread, normal(*rows)
    if case.reference is not None:
        offsets = off_the_edges(offsets.to(projections), reference, case.shapes, generator)
        inputs = Inputs(value, list(case.shapes), offsets, logits.to(projections), reference)
    else:
        locations = four_dimensions(reference)[:, :, None, :, None] + offsets / pixels_per_unit(case.shapes)
        locations = off_the_edges(locations.to(coordinates), None, case.shapes, generator)
        weights = logits.flatten(-2).softmax(-1).view(rows).to(projections)
        inputs = Inputs(value, list(case.shapes), locations, weights)
    return inputs.map(lambda x: x.to(device))


def pixels_per_unit(shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return (L, 1, 2), (width, height) of each level."""
    return torch.tensor([(w, h) for h, w in shapes], dtype=F64).view(-1, 1, 2)


def pixel_centers(shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return (S, 2), the centers of all pixels, level after level."""
    centers = []
    for h, w in shapes:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        centers.append(torch.stack([x, y], -1).view(-1, 2))
    return torch.cat(centers)


def off_the_edges(
    sampling: Tensor, reference: Tensor | None, shapes: tuple[tuple[int, int], ...], generator: torch.Generator
) -> Tensor:
    """Move the samples that lie within a thousandth of a pixel of the center line of a pixel."""
    sizes = pixels_per_unit(shapes)
    for _ in range(100):
        if reference is None:
            at, unit = sampling * sizes - 0.5, 1 / sizes
        else:
            at, unit = four_dimensions(reference)[:, :, None, :, None] * sizes + sampling - 0.5, 1
        near = (at - at.round()).abs() < 1e-3
        if not near.any():
            return sampling
        step = torch.rand(sampling.shape, dtype=F64, generator=generator) * unit
        sampling = torch.where(near, sampling * 0.7 + step, sampling).to(sampling.dtype)
    raise AssertionError("samples stay at the edges of pixels")


def gradient_for(inputs: Inputs, seed: int = 1) -> Tensor:
    """Return a random gradient of the output, (B, N, heads * D)."""
    batch, _, heads, dim = inputs.value.shape
    shape = batch, inputs.sampling.shape[1], heads * dim
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(inputs.value.device, inputs.value.dtype)


def run(inputs: Inputs, grad: Tensor | None = None, op: Callable[..., Tensor] = ms_deform_attn) -> dict[str, Tensor]:
    """Return the output under "out", and the gradient of each input under its name."""
    leaves = inputs.leaves()
    out = leaves.call(op)
    tensors = leaves.tensors()
    grads = torch.autograd.grad(out, list(tensors.values()), gradient_for(inputs) if grad is None else grad)
    return {"out": out.detach(), **dict(zip(tensors, grads))}


def reference_op(value: Tensor, shapes: list[tuple[int, int]], *others: Tensor | None) -> Tensor:
    """Run the PyTorch code, with reference points of any accepted shape."""
    sampling, attention, reference = others
    return ms_deform_attn_reference(
        value, shapes, sampling, attention, None if reference is None else four_dimensions(reference)
    )


def run_reference(inputs: Inputs, grad: Tensor | None = None) -> dict[str, Tensor]:
    """Do as `run`, by the PyTorch code in fp64, on the same numbers."""
    grad = gradient_for(inputs) if grad is None else grad
    return run(inputs.map(lambda x: x.detach().double()), grad.double(), reference_op)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of what is expected."""
    difference = (found.double() - expected.double()).norm().item()
    return difference / max(expected.double().norm().item(), 1e-30) if difference else 0.0


def check(inputs: Inputs, grad: Tensor | None = None) -> None:
    """Assert that output and gradients of the op equal the fp64 reference, in the dtypes of the inputs."""
    found, expected = run(inputs, grad), run_reference(inputs, grad)
    tolerance = max(TOLERANCE[x.dtype] for x in inputs.tensors().values())
    for name, tensor in found.items():
        assert tensor.dtype == inputs.tensors().get(name, inputs.value).dtype, name
        assert tensor.shape == expected[name].shape, name
        assert tensor.isfinite().all(), name
    errors = {name: error(tensor, expected[name]) for name, tensor in found.items()}
    assert max(errors.values()) < tolerance, errors
