"""Whether modules are still what they were, told by few comparisons, since it is asked in every call of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class State(NamedTuple):
    """What a captured training relies on; to be compared while the tensors that learn are kept.

    Attributes:
        objects: `id` of the tensors. Another one at the same place, as `nn.Parameter(old.data)`, has its own gradient.
        addresses: where their values are.
        learn: which have gradients.
        numbers: attributes of the modules.
    """

    objects: list[int]
    addresses: list[int]
    learn: list[bool]
    numbers: list[float]


class WatchedModules:
    """Modules as they were at the start, with all that is inside them.

    Nothing is remembered of a call but what costs much and follows from the rest: which modules there are (from the
    children of each), and whether the attributes of a module change how it is called (from their names).

    Args:
        roots: the modules.
        is_special: tells of a module whether calling it does more than its class says, as by hooks.
        addresses: remember where parameters and buffers are, and keep that memory, for `have_same_addresses`.
        numbers: attributes of modules that belong to their `state` where they are numbers.
    """

    def __init__(
        self,
        roots: Iterable[nn.Module],
        is_special: Callable[[nn.Module], bool],
        addresses: bool = True,
        numbers: Sequence[str] = (),
    ) -> None:
        self._is_special, self._numbers = is_special, numbers
        # A dictionary, which removes duplicates, keeps their order.
        self._modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        self._names: list[Any] = [None] * len(self._modules)
        self._special = [False] * len(self._modules)
        self._own_numbers: list[Sequence[str]] = [()] * len(self._modules)
        self._structure = self._current_structure()
        tensors = self._tensors() if addresses else []
        self._addresses = [tensor.data_ptr() for tensor in tensors]
        self._kept = [tensor.untyped_storage() for tensor in tensors]  # so that nothing else comes to these addresses

    def have_same_structure(self) -> bool:
        """Return whether the modules, their classes, modes, methods and hooks are those of the start."""
        return self._structure == self._current_structure()

    def have_same_addresses(self) -> bool:
        """Return whether all parameters and buffers are where they were; of modules with the same structure."""
        return self._addresses == [tensor.data_ptr() for tensor in self._tensors()]

    def state(self) -> State:
        """Return the state of all parameters, buffers and numbers; of modules with the same structure."""
        tensors = self._tensors()
        return State(
            [id(tensor) for tensor in tensors],
            [tensor.data_ptr() for tensor in tensors],
            [tensor.requires_grad for tensor in tensors],
            [vars(each)[name] for each, names in zip(self._modules, self._own_numbers, strict=True) for name in names],
        )

    def _current_structure(self) -> list[Any]:
        found: list[Any] = []
        for i, module in enumerate(self._modules):
            own, cls = vars(module), type(module)
            # Hooks of different registrations have different keys; methods of an object are attributes.
            names = (cls, *own, *own["_forward_hooks"], *own["_forward_pre_hooks"], own.get("_compiled_call_impl"))
            if own["_backward_hooks"] or own["_backward_pre_hooks"]:
                names += (*own["_backward_hooks"], *own["_backward_pre_hooks"])
            if names != self._names[i]:
                self._names[i], self._special[i] = names, self._is_special(module)
                self._own_numbers[i] = [name for name in self._numbers if isinstance(own.get(name), int | float)]
            found += (cls, cls.forward, own["training"], self._special[i])
            if own["_modules"]:
                found += map(id, own["_modules"].values())
        return found

    def _tensors(self) -> list[Tensor]:
        found: list[Tensor | None] = []
        for module in self._modules:
            own = vars(module)
            if own["_parameters"]:
                found += own["_parameters"].values()
            if own["_buffers"]:
                found += own["_buffers"].values()
        return [tensor for tensor in found if tensor is not None]
