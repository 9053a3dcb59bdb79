"""The context in which the vectors are compared leaves no float32, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.float64 import everything_in_float64

X = torch.linspace(-1, 1, 6, dtype=torch.float64).view(1, 1, 2, 3)


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.zeros(2),
        lambda: torch.arange(3, dtype=torch.float32),
        lambda: torch.tensor([1.5]),
        lambda: torch.full((), 2.0, dtype=torch.float32),
        lambda: X.float(),
        lambda: X.to(torch.float32),
        lambda: X.to(dtype=torch.float32),
        lambda: X.cumsum(3, dtype=torch.float32),
        lambda: X.new_zeros(2, dtype=torch.float32),
        lambda: F.softmax(X, dim=3, dtype=torch.float32),
        lambda: F.interpolate(X.float(), (4, 4), mode="bilinear", align_corners=False),
    ],
)
def test_what_is_made_is_float64(made: Callable[[], Tensor]) -> None:
    with everything_in_float64():
        inside = made()
    assert inside.dtype == torch.float64


def test_digits_beyond_float32_survive_a_cast() -> None:
    third = torch.tensor(1 / 3, dtype=torch.float64)
    with everything_in_float64():
        assert third.float().item() == 1 / 3
    assert third.float().item() != 1 / 3


def test_other_dtypes_stay() -> None:
    with everything_in_float64():
        assert torch.zeros(2, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert (X > 0).dtype == torch.bool
        assert torch.arange(3).dtype == torch.int64


def test_nothing_remains_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), everything_in_float64():
        raise RuntimeError("inside")
    assert torch.zeros(1).dtype == torch.get_default_dtype() == X.float().dtype == torch.float32
