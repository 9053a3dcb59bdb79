"""What the ranks of a training have in common, and the random state that each has of its own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import nn


def share_buffers(model: nn.Module) -> None:
    """Give all ranks the batch-norm statistics of the first, whose model is the one that is saved.

    Each rank collects its own; training does not use them.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.is_contiguous():
                torch.distributed.broadcast(buffer, 0)


def check_same_start(step: int, directory: str) -> None:
    """All ranks must begin with the same step, else they would train different models or wait for ever.

    Raises:
        ValueError: they do not, for example because OUTPUT_DIR is a local directory of each machine.
    """
    steps = comm.all_gather(step)
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {rank}: {each}" for rank, each in enumerate(steps))
        raise ValueError(
            f"The processes would continue after different steps ({found}). OUTPUT_DIR {directory} must be a directory "
            "that all machines share; or copy the checkpoint and the file last_checkpoint to each."
        )


def get_random_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators, and of the current GPU's if there is one."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [
            str(algorithm),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `get_random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the generators as they were (an evaluation must not change the training)."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
