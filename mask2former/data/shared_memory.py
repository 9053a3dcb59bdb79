"""Tensors that a worker of a loader hands to the main process without a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import get_worker_info


def shared_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros on the CPU, in a worker of a loader in shared memory.

    Memory that is not written is not allocated, here or there, so dense masks of small objects are cheap.

    Args:
        shape: of the tensor.
        dtype: uint8 or bool.
    """
    count = math.prod(shape)
    if get_worker_info() is None or not count:
        return torch.from_numpy(np.zeros(shape, np.uint8)).view(dtype)
    storage = torch.UntypedStorage._new_shared(count)  # what the default collation of torch takes, for the same reason
    return torch.empty(0, dtype=dtype).set_(storage).view(tuple(shape))
