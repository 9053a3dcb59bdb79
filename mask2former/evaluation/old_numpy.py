"""NumPy for libraries that were written for an older one."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np


def give_old_numpy(module: ModuleType) -> None:
    """Let `module`, which says `import numpy as np`, find names there that NumPy has dropped; only in that module."""
    if not isinstance(getattr(module, "np", None), _OldNumpy):
        module.np = _OldNumpy()  # type: ignore[attr-defined]


def _in1d(values: Any, wanted: Any, invert: bool = False) -> np.ndarray:
    return np.isin(np.ravel(values), wanted, invert=invert)


class _OldNumpy:
    dropped: dict[str, Any] = {"in1d": _in1d, "float": float, "int": int, "bool": bool}

    def __getattr__(self, name: str) -> Any:
        return self.dropped[name] if name in self.dropped else getattr(np, name)
