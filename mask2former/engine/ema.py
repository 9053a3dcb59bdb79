"""Exponential moving average (EMA) of the weights of a model, also called Polyak averaging."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.training_state import check_no_nan, check_tensor, entry, mapping, whole_number
from ..errors import CorruptCheckpointError
from ..modeling.watched_modules import WatchedModules


class WeightAverage:
    """EMA of the floating-point parameters and buffers of `model`.

    The decay after n updates is min(decay, (1 + n) / (10 + n)): it starts low, so that the initial weights do not
    dominate short trainings.

    Args:
        model: not wrapped in DistributedDataParallel; every rank keeps an equal copy of the average.
        decay: in (0, 1), for example 0.9998.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"SOLVER.EMA_DECAY must lie between 0 and 1, got {decay}")
        self._model = model
        self._decay = decay
        self._updates = 0
        self.restored = False  # whether the average was loaded from a checkpoint
        self._average: dict[str, Tensor] = {}
        self._places: list[tuple[dict[str, Any], str]] | None = None
        self._watched: WatchedModules | None = None
        self.reset()

    def _sources(self) -> dict[str, Tensor]:
        return {k: v for k, v in self._model.state_dict().items() if v.is_floating_point()}

    def _current(self) -> list[Tensor]:
        """Return the model's tensors in the order of the average, without asking every module for its state."""
        if self._watched is None or not self._watched.have_same_structure():
            self._watched = WatchedModules([self._model], lambda module: False, addresses=False)
            sources = self._sources()
            self._places = _places(self._model, {name: sources[name] for name in self._average})
        if self._places is None:  # names that are not those of the modules
            sources = self._sources()
            return [sources[name] for name in self._average]
        return [tensors[name] for tensors, name in self._places]

    @torch.no_grad()
    def reset(self) -> None:
        """Restart the average from the current weights of the model."""
        self._updates = 0
        self._watched = None
        self._average = {name: value.detach().clone() for name, value in self._sources().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights; call once after each optimizer step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        torch._foreach_lerp_(list(self._average.values()), self._current(), 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model inside the context, and restore the trained weights on exit."""
        trained = {name: value.detach().clone() for name, value in self._sources().items()}
        self._write(self._average)
        try:
            yield
        finally:
            self._write(trained)

    def apply(self) -> None:
        """Overwrite the model's weights with the average."""
        self._write(self._average)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, target in self._sources().items():
            target.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return {"average": {name: tensor}, "updates": number of updates}; the tensors are not copied."""
        return {"average": self._average, "updates": self._updates}

    def check_state_dict(self, state: Any, where: str = "EMA weights") -> None:
        """Check what `load_state_dict` will load.

        Raises:
            CorruptCheckpointError: a tensor of the model is missing, or has another shape or dtype.
        """
        average = mapping(entry(mapping(state, where), "average", where), f"{where}['average']")
        missing = sorted(set(self._average) - set(average))
        if missing:
            raise CorruptCheckpointError(
                f"{where}: the EMA weights lack {len(missing)} tensors of the model, the first is '{missing[0]}'."
            )
        parameters = dict(self._model.named_parameters())
        for name, target in self._average.items():
            value = check_tensor(average[name], target, f"{where}['average'][{name!r}]")
            if name in parameters:
                check_no_nan(value, f"{where}['average'][{name!r}]")
        whole_number(entry(state, "updates", where), f"{where}['updates']")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CorruptCheckpointError: see `check_state_dict`; nothing is changed then.
        """
        self.check_state_dict(state)
        for name, target in self._average.items():
            target.copy_(state["average"][name])
        self._updates = int(state["updates"])
        self.restored = True


def _places(model: nn.Module, state: Mapping[str, Tensor]) -> list[tuple[dict[str, Any], str]] | None:
    """Return for each tensor of a state dict the dictionary of a module that has it; None if one has none, as modules
    and hooks may compute it.
    """
    modules = dict(model.named_modules())
    found = []
    for name, value in state.items():
        path, _, own = name.rpartition(".")
        module = modules.get(path)
        if module is None:
            return None
        tensors = module._parameters if module._parameters.get(own) is not None else module._buffers
        tensor = tensors.get(own)
        if tensor is None or tensor.data_ptr() != value.data_ptr() or tensor.shape != value.shape:
            return None
        found.append((tensors, own))
    return found
