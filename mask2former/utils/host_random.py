"""The random numbers of the CPU: of Python, NumPy and PyTorch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class HostRandom:
    """The states of the three global generators at the time of the call."""

    def __init__(self) -> None:
        self._states = _states()

    def was_drawn(self) -> bool:
        """Return whether a generator is in another state now."""
        return any(not _same(a, b) for a, b in zip(self._states, _states(), strict=True))

    def restore(self) -> None:
        """Set those generators back that are in another state now."""
        setters: tuple[Any, ...] = (random.setstate, np.random.set_state, torch.set_rng_state)
        for setter, before, now in zip(setters, self._states, _states(), strict=True):
            if not _same(before, now):
                setter(before)


def _states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(legacy=True), _of_torch()


def _of_torch() -> torch.Tensor:
    return torch.get_rng_state()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b))
