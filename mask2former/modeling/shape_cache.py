"""Tensors that depend on nothing but a shape, kept for the next picture of that shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

V = TypeVar("V")


class ShapeCache(Generic[V]):
    """The values of the last few keys; older ones are forgotten, so that many image sizes do not fill the memory."""

    def __init__(self, entries: int = 8) -> None:
        self.entries = entries
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def __call__(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value for `key`, made by `make()` if it is new. Nothing is kept while a graph is compiled or exported."""
        if torch.compiler.is_compiling():
            return make()
        if key not in self._values:
            # Outside inference mode and autocast: a training step may use what an evaluation has made.
            with torch.inference_mode(False), torch.no_grad():
                self._values[key] = make()
            if len(self._values) > self.entries:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]

    def __deepcopy__(self, memo: object) -> ShapeCache[V]:
        return ShapeCache(self.entries)

    def __reduce__(self) -> tuple[object, ...]:
        return ShapeCache, (self.entries,)
