"""State that the ranks of a training share, and the random state of each rank."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import nn

from ..checkpoint.training_state import finite_number, mapping, whole_number
from ..errors import CorruptCheckpointError


def share_buffers(model: nn.Module) -> None:
    """Broadcast the floating-point buffers (batch-norm statistics) of rank 0, whose model is the one that is saved.

    Each rank collects its own statistics; the forward pass in training mode does not read them.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.is_contiguous():
                torch.distributed.broadcast(buffer, 0)


def check_same_start(step: int, directory: str) -> None:
    """Check that all ranks start from the same iteration; otherwise they would train different models or hang.

    Args:
        step: number of iterations that this rank has completed.
        directory: OUTPUT_DIR, for the message.

    Raises:
        ValueError: they differ, for example because OUTPUT_DIR is a local directory of each machine.
    """
    iterations = comm.all_gather(step)
    if len(set(iterations)) > 1:
        by_rank = ", ".join(f"rank {rank}: {iteration}" for rank, iteration in enumerate(iterations))
        raise ValueError(
            f"The ranks would start from different iterations ({by_rank}). OUTPUT_DIR {directory} must be a directory "
            "that all machines share; otherwise copy the checkpoint and the file last_checkpoint to each machine."
        )


def get_random_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and torch, and of the current GPU if there is one."""
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


def check_random_state(state: Any, where: str) -> None:
    """Check that `set_random_state` can restore a saved state; the generators of this process are not touched.

    Raises:
        CorruptCheckpointError: it cannot.
    """
    try:
        version, words, gauss = mapping(state, where)["python"]
        if gauss is not None:
            finite_number(gauss, f"{where}['python'][2]")
        random.Random().setstate((version, tuple(words.tolist()), gauss))
        algorithm, keys, position, has_gauss, cached = state["numpy"]
        # NumPy reads behind the end of its words from a position that is too large.
        whole_number(position, f"{where}['numpy'][2]", 0, len(keys))
        whole_number(has_gauss, f"{where}['numpy'][3]", 0, 1)
        finite_number(cached, f"{where}['numpy'][4]")
        if keys.dtype != torch.int64 or not bool(((keys >= 0) & (keys < 2**32)).all()):
            raise CorruptCheckpointError(f"{where}['numpy'][1] is not a tensor of unsigned 32-bit numbers")
        np.random.RandomState().set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.Generator().set_state(state["torch"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.Generator(device="cuda").set_state(state["cuda"].cpu())
    except CorruptCheckpointError:
        raise
    except Exception as error:  # the generators raise nearly everything: KeyError, OverflowError, RuntimeError, ...
        raise CorruptCheckpointError(f"{where} is not a random state ({type(error).__name__}: {error})") from error


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `get_random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the random state on exit, so that an evaluation does not change the training."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
