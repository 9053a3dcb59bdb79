"""Weights that are computed from those of a model, and computed again in place when the model's have changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Folded:
    """A convolution that includes the norm after it."""

    convolution: nn.Module
    norm: nn.Module
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Copied:
    module: nn.Module
    name: str
    target: Tensor


class DerivedWeights:
    """Tensors made of weights of a model: copies of another type or memory format, and folded norms.

    Weights are read by module and name, so that a parameter that was exchanged counts.

    Args:
        dtype: type of the results, as autocast casts: float64 stays; None for the type of the weights.
        channels_last: store weights of convolutions in this memory format.
    """

    def __init__(self, dtype: torch.dtype | None, channels_last: bool) -> None:
        self.dtype, self.channels_last = dtype, channels_last
        self._copied: list[_Copied] = []
        self._folded: list[_Folded] = []

    def differs(self, weight: Tensor, dtype: bool = True) -> bool:
        """Return whether a weight is not yet as it would be stored; `dtype` False: its type is to stay."""
        return self._type(weight, dtype) != weight.dtype or self._format(weight) != torch.preserve_format

    def copy(self, module: nn.Module, name: str, dtype: bool = True) -> nn.Parameter:
        """Return a copy of a parameter of `module`, to be filled by `refresh`."""
        target = self._empty(getattr(module, name), dtype)
        self._copied.append(_Copied(module, name, target))
        return _parameter(target)

    def fold(self, convolution: nn.Conv2d, norm: nn.Module, dtype: bool = True) -> tuple[nn.Parameter, nn.Parameter]:
        """Return weight and bias of a convolution that includes a batch norm in evaluation, filled by `refresh`."""
        weight = self._empty(convolution.weight, dtype)
        with torch.inference_mode(False):
            bias = weight.new_empty(len(weight))
        self._folded.append(_Folded(convolution, norm, weight, bias))
        return _parameter(weight), _parameter(bias)

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute all tensors again, in place: no host reads, so that a CUDA graph can hold it."""
        for same_layout in (True, False):  # only the same strides go into one kernel
            pairs = [(x.target, getattr(x.module, x.name)) for x in self._copied]
            pairs = [(a, b) for a, b in pairs if (a.stride() == b.stride()) is same_layout]
            if pairs:
                torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])
        if self._folded:
            self._refresh_folded()

    def _refresh_folded(self) -> None:
        folded = self._folded
        norms: list[Any] = [x.norm for x in folded]
        scales = torch._foreach_add([n.running_var for n in norms], [n.eps for n in norms])
        torch._foreach_rsqrt_(scales)
        torch._foreach_mul_(scales, [n.weight for n in norms])
        shifts = torch._foreach_mul([n.running_mean for n in norms], scales)
        biases = torch._foreach_sub([n.bias for n in norms], shifts)
        own: list[Any] = [x.convolution.bias for x in folded]
        with_bias = [i for i, bias in enumerate(own) if bias is not None]
        if with_bias:
            scaled = torch._foreach_mul([own[i] for i in with_bias], [scales[i] for i in with_bias])
            torch._foreach_add_([biases[i] for i in with_bias], scaled)
        torch._foreach_copy_([x.bias for x in folded], biases)
        for x, scale in zip(folded, scales, strict=True):  # one kernel that multiplies, casts and orders the memory
            weight: Any = x.convolution.weight
            torch.mul(weight, scale.view(-1, 1, 1, 1), out=x.weight)

    def layout(self) -> list[Any]:
        """Return shape, type and device of the weights: if they change, the results no longer fit."""
        return [None if x is None else (x.shape, x.dtype, x.device) for x in self._sources()]

    def _sources(self) -> Iterator[Tensor | None]:
        for copied in self._copied:
            yield _read(copied.module, copied.name)
        for folded in self._folded:
            yield from (_read(folded.convolution, name) for name in ("weight", "bias"))
            yield from (_read(folded.norm, name) for name in ("weight", "bias", "running_mean", "running_var"))

    def _type(self, weight: Tensor, dtype: bool) -> torch.dtype:
        casts = self.dtype is not None and dtype and weight.is_floating_point() and weight.dtype != torch.float64
        return self.dtype if casts and self.dtype is not None else weight.dtype

    def _format(self, weight: Tensor) -> torch.memory_format:
        changes = self.channels_last and weight.dim() == 4
        if changes and not weight.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        return torch.preserve_format

    def _empty(self, weight: Tensor, dtype: bool) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return torch.empty_like(weight, dtype=self._type(weight, dtype), memory_format=self._format(weight))


def _read(module: nn.Module, name: str) -> Tensor | None:
    """Return a weight as an attribute would, but without its detours: this is done for all weights in every call."""
    own = vars(module)
    if name not in own:  # as it would be after it was assigned as a plain tensor
        for place in (own["_parameters"], own["_buffers"]):
            if name in place:
                return place[name]  # type: ignore[no-any-return]
    return getattr(module, name)  # type: ignore[no-any-return]


def _parameter(tensor: Tensor) -> nn.Parameter:
    with torch.inference_mode(False):
        return nn.Parameter(tensor, requires_grad=False)
