"""Run models in float64, also where their code names float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Float64Mode(TorchFunctionMode):
    """Intercept every torch function; replace float32 by float64 in its arguments."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **named)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def everything_in_float64() -> Iterator[None]:
    """Compute in float64 within this context: new tensors are float64, and so is what is cast to float32 by name.

    The weights have to be float64 already (`model.double()`).

    Masked attention leaves a token out where a mask logit is negative, so the network jumps there. Rounding differs
    between processors; in float32 it moves a few of the many logits across zero, and the outputs differ by up to 4e-3.
    In float64 no logit is that close to zero, and two correct implementations agree to about 1e-12 on every processor.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64Mode():
            yield
    finally:
        torch.set_default_dtype(before)
