"""Tensors that depend on nothing but a shape, kept for the next image of that shape."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

V = TypeVar("V")


class ShapeCache(Generic[V]):
    """The values of the last few keys; older ones are forgotten, so that many image sizes do not fill the memory.

    Threads may share it: two of them may make the same value, and each gets its own.
    """

    def __init__(self, entries: int = 8) -> None:
        self.entries = entries
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value for `key`, made by `make()` if it is new. Nothing is kept while a graph is compiled or exported."""
        if torch.compiler.is_compiling():
            return make()
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        # Outside inference mode and autocast: a training step may use what an evaluation has made.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.entries:
                self._values.popitem(last=False)
        return value

    def __deepcopy__(self, memo: object) -> ShapeCache[V]:
        return ShapeCache(self.entries)

    def __reduce__(self) -> tuple[object, ...]:
        return ShapeCache, (self.entries,)
