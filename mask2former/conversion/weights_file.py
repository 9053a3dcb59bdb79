"""Weights from one file format to another: .safetensors and .pth, in another precision if requested."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import torch

from ..checkpoint import load_weights, save_safetensors
from ..utils.atomic_file import atomic_write

SUFFIXES = (".safetensors", ".pth")


def convert_file(source: str, target: Path, dtype: torch.dtype | None = None) -> int:
    """Write the weights of a checkpoint, without optimizer and schedule, in the format of the suffix of `target`.

    Args:
        source: file or URL (.safetensors, .pth, .pkl), a Hugging Face directory, or the name of a published model.
        target: file to write.
        dtype: storage of floating point weights; None: as in the input.

    Returns:
        The number of weights.

    Raises:
        CheckpointError: not a checkpoint, or one that would run code.
        ValueError: unknown suffix, or `target` is `source`.
    """
    if target.suffix not in SUFFIXES:
        raise ValueError(f"OUT must end with {' or '.join(SUFFIXES)}; got {target}")
    if target.exists() and os.path.exists(source) and target.samefile(source):
        raise ValueError(f"{target} is the input itself; choose another OUT")
    state = load_weights(source)
    if target.suffix == ".safetensors":
        save_safetensors(state, target, dtype)
        return len(state)
    cast = {k: v.to(dtype) if dtype is not None and v.is_floating_point() else v for k, v in state.items()}
    weights = OrderedDict((key, value.contiguous()) for key, value in cast.items())
    # The reference implementation takes the names of a head without a version for older ones, and renames them.
    weights._metadata = {"sem_seg_head": {"version": 2}}  # type: ignore[attr-defined]
    with atomic_write(target) as file:
        torch.save({"model": weights}, file)
    return len(state)
