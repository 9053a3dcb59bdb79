"""Writing of weights as safetensors, and conversion of checkpoints to plain data."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..utils.atomic_file import atomic_write


def save_safetensors(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write weights as safetensors, atomically.

    Args:
        dtype: storage type of the floating-point tensors, e.g. `torch.float16` for half the size; None keeps
            that of each tensor. Loading into a float32 model converts back.
        metadata: entries to store in the header; values are written as text.

    Raises:
        ValueError: a finite value does not fit into `dtype`; the message names the tensor.
    """
    state = model_or_state_dict
    if isinstance(state, nn.Module):
        state = state.state_dict()
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        value = tensor.detach().to("cpu")
        if dtype is not None and value.is_floating_point():
            small = value.to(dtype)
            if not torch.equal(torch.isfinite(small), torch.isfinite(value)):
                raise ValueError(f"{key} has values up to {value.abs().max():.3g}, too large for {dtype}")
            value = small
        # safetensors stores each tensor separately: views and shared memory are copied.
        tensors[key] = value.clone(memory_format=torch.contiguous_format)
    header = {"format": "pt", **{key: str(value) for key, value in (metadata or {}).items()}}
    path = Path(path)
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(tensors, metadata=header))
    return path


def plain_data(value: Any, where: str = "checkpoint") -> Any:
    """Convert `value` to tensors, containers, text and numbers, which `torch.load(weights_only=True)` can load.

    NumPy arrays become tensors and NumPy numbers Python numbers.

    Raises:
        CheckpointError: `value` contains another type; the message says where.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return _plain_number(value)
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    if isinstance(value, (torch.Size, torch.dtype, torch.device)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        out = {plain_data(key, where): plain_data(item, f"{where}[{key!r}]") for key, item in value.items()}
        return _with_metadata(out, value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain_data(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items) if isinstance(value, tuple) else set(items)
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which is not plain data. "
        "Let its state_dict() return tensors, numbers, text and containers of them."
    )


def _plain_number(value: Any) -> Any:
    """Convert subclasses (enum members, np.float64), which would be pickled with their class, to the plain type."""
    types: tuple[Any, ...] = (bool, int, float, complex, str, bytes)
    return next((plain(value) for plain in types if isinstance(value, plain)), value)


def _with_metadata(out: dict[Any, Any], source: Mapping[Any, Any]) -> dict[Any, Any]:
    """Keep the module versions that torch attaches to a state dict."""
    metadata = getattr(source, "_metadata", None)
    if metadata is None:
        return out
    ordered = OrderedDict(out)
    ordered._metadata = plain_data(metadata)  # type: ignore[attr-defined]
    return ordered
