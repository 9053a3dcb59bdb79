"""Which shapes of images are worth being compiled in inference: each takes the compiler some tens of seconds."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable

# Code for any shape at once takes the compiler minutes, and is slower than that for one.
MOST = 4
OFTEN = 100  # calls of a shape; until then CUDA graphs of the network as it is are nearly as fast
_REMEMBERED = 1000


class CompiledShapes:
    """The shapes that are compiled: the first one at once, others when they have come often, a few in all."""

    def __init__(self) -> None:
        self._chosen: set[Hashable] = set()
        self._calls: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def __call__(self, shape: Hashable) -> bool:
        """Count a call, and return whether its shape is compiled from now on."""
        with self._lock:
            if shape in self._chosen:
                return True
            if len(self._chosen) >= MOST:
                return False
            if self._chosen:
                if len(self._calls) >= _REMEMBERED and shape not in self._calls:
                    self._calls.clear()
                self._calls[shape] += 1
                if self._calls[shape] < OFTEN:
                    return False
            self._chosen.add(shape)
            self._calls.pop(shape, None)
            return True

    def clear(self) -> None:
        """Begin again, for another network."""
        with self._lock:
            self._chosen.clear()
            self._calls.clear()
