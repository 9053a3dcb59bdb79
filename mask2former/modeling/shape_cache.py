"""Cache of tensors that depend only on a shape."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

import torch

V = TypeVar("V")
_holders = threading.local()


@contextlib.contextmanager
def holding(values: list[object]) -> Iterator[None]:
    """Append all values that caches of this thread give out to a list: a CUDA graph reads them for as long as it lives,
    but a cache may forget them.
    """
    before = getattr(_holders, "values", None)
    _holders.values = values
    try:
        yield
    finally:
        _holders.values = before


def is_capturing() -> bool:
    """Return whether this thread captures a CUDA graph: what is computed now is there only when the graph runs."""
    return getattr(_holders, "values", None) is not None


def _held(value: V) -> V:
    values = getattr(_holders, "values", None)
    if values is not None:
        values.append(value)
    return value


class ShapeCache(Generic[V]):
    """Least-recently-used cache, bounded so that many image sizes do not fill the memory.

    It is thread-safe; two threads may compute the same value at the same time.
    """

    def __init__(self, entries: int = 8) -> None:
        self.entries = entries
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value of `key`, computed by `make()` on a miss; compiling or exporting a graph caches nothing."""
        if torch.compiler.is_compiling():
            return make()
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return _held(self._values[key])
        # Outside inference mode and autocast: training may use values computed in evaluation.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        if is_capturing():  # another thread has taken the place of what was there before the capture
            return _held(value)
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.entries:
                self._values.popitem(last=False)
        return _held(value)

    def __deepcopy__(self, memo: object) -> ShapeCache[V]:
        return ShapeCache(self.entries)

    def __reduce__(self) -> tuple[object, ...]:
        return ShapeCache, (self.entries,)
