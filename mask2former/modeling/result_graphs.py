"""CUDA graphs of what makes the results of an image: about a hundred small kernels, launched at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from .cuda_graphs import GraphCache, Outputs

logger = logging.getLogger(__name__)

# A capture takes about as long as what ten graphs save. Where sizes are many, each graph is dropped soon after it.
_AFTER, _OFTEN = 3, 40


class ResultGraphs:
    """Graphs of functions of a few tensors on a GPU; equal functions launch the same kernels for the same shapes."""

    def __init__(self) -> None:
        self._graphs = GraphCache(after=_AFTER, often=_OFTEN, of="masks")
        self._refused = False

    @property
    def captured(self) -> int:
        """Return how often a graph was captured so far."""
        return self._graphs.captured

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self._graphs)

    def __call__(self, function: Callable[..., Outputs], *inputs: Tensor) -> Outputs | None:
        """Return what `function(*inputs)` returns, from a graph; None if there is none yet, or cannot be one."""
        if self._refused or not inputs[0].is_cuda or torch.cuda.is_current_stream_capturing():
            return None
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # which see no kernel of a graph
            return None
        if torch._C._len_torch_dispatch_stack():  # something looks at operations, and would see none
            return None
        try:
            return self._graphs((function, torch.is_autocast_enabled("cuda")), function, *inputs)
        except torch.OutOfMemoryError:
            logger.warning("not enough memory for CUDA graphs of results, which are made without")
        except (RuntimeError, TypeError) as error:
            logger.warning("results are made without CUDA graphs: %s", (str(error).strip().splitlines() or [""])[0])
        self._refused = True
        self.clear()
        return None

    def clear(self) -> None:
        """Drop all graphs."""
        self._graphs.clear()
