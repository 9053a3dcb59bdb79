"""Exponential moving average of a model's weights (Polyak averaging): often better than the last ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages the floating-point parameters and buffers of `model`.

    The decay starts low and rises to `decay`, min(decay, (1 + n) / (10 + n)) after n updates, so that short
    runs are not dominated by the random start.

    Args:
        model: not wrapped in DistributedDataParallel; every rank keeps its own, equal average.
        decay: in (0, 1), for example 0.9998.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"SOLVER.EMA_DECAY must lie between 0 and 1, got {decay}")
        self._model = model
        self._decay = decay
        self._updates = 0
        self.restored = False  # whether a checkpoint filled this average
        self.reset()

    def _sources(self) -> dict[str, Tensor]:
        return {k: v for k, v in self._model.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def reset(self) -> None:
        """Start again from the model's present weights."""
        self._updates = 0
        self._average = {name: value.detach().clone() for name, value in self._sources().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights; call once after each optimizer step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        sources = self._sources()
        torch._foreach_lerp_(list(self._average.values()), [sources[name] for name in self._average], 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside the context and its own weights again after it."""
        own = {name: value.detach().clone() for name, value in self._sources().items()}
        self._write(self._average)
        try:
            yield
        finally:
            self._write(own)

    def apply(self) -> None:
        """Overwrite the model's weights with the average."""
        self._write(self._average)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, target in self._sources().items():
            target.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        missing = sorted(set(self._average) - set(state["average"]))
        if missing:
            raise ValueError(f"The saved EMA weights lacks {len(missing)} tensors of the model, first '{missing[0]}'")
        for name, target in self._average.items():
            target.copy_(state["average"][name])
        self._updates = int(state["updates"])
        self.restored = True
