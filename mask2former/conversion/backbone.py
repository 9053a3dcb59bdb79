"""ImageNet weights of torchvision's ResNets and of Swin Transformers (official or timm's names) for detectron2."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.key_mapping import Renamer, swin_names, torchvision_resnet_names
from ..checkpoint.reading import read_checkpoint
from ..errors import CheckpointError
from ..utils.file_io import write_bytes

# Recreated by every model: masks of one image size, and counters that nothing reads.
_DROPPED = (".attn_mask", ".num_batches_tracked")
_PREFIX = "backbone."


class Family(NamedTuple):
    """Backbones with the same names of weights.

    `rename` returns a state dict with detectron2's names after `backbone.`, or None if it does not know the names;
    `author` is "__author__" of the file; `expected` describes the weights, for messages.
    """

    rename: Renamer
    author: str
    expected: str


RESNET = Family(torchvision_resnet_names, "torchvision", "a torchvision ResNet")
SWIN = Family(swin_names, "third_party", "a Swin Transformer (version 1)")


class Converted(NamedTuple):
    """How many arrays were written, how many dropped because nothing needs them, and of which family they are."""

    written: int
    dropped: int
    family: Family


def convert_backbone(source: str, target: Path, families: tuple[Family, ...] = (RESNET, SWIN)) -> Converted:
    """Write a .pkl as detectron2 publishes them: {"model": {name: array}, "__author__", "matching_heuristics"}.

    Args:
        source: weights as downloaded (.pth, .safetensors); read as data, never executed.
        target: file to write.
        families: those to try, in this order.

    Raises:
        CheckpointError: no such file, or weights of other names.
        ValueError: `target` does not end with .pkl.
    """
    if target.suffix != ".pkl":
        raise ValueError(f"OUT must end with .pkl, which detectron2 expects of such files; got {target}")
    state = dict(read_checkpoint(source)["model"])
    for family in families:
        model = convert(state, family.rename)
        if model is not None:
            checkpoint = {"model": model, "__author__": family.author, "matching_heuristics": True}
            write_bytes(target, pickle.dumps(checkpoint))
            return Converted(len(model), len(state) - len(model), family)
    expected = " or ".join(family.expected for family in families)
    raise CheckpointError(f"{source} does not hold the weights of {expected}, but {_first_names(state)}")


def convert(state: dict[str, Tensor], rename: Renamer) -> dict[str, np.ndarray] | None:
    """Return arrays under detectron2's names, e.g. `res2.0.conv1.weight`; None if `rename` does not know the names."""
    renamed = rename(state)
    if renamed is None:
        return None
    return {key.removeprefix(_PREFIX): _array(value) for key, value in renamed.items() if not key.endswith(_DROPPED)}


def _array(value: Tensor) -> np.ndarray:
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()  # NumPy has no bfloat16


def _first_names(state: dict[str, Tensor]) -> str:
    names = list(state)[:3]
    return ", ".join(names) + (" ..." if len(state) > len(names) else "") if names else "no weights"
