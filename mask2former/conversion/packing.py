"""Packing of a training output directory into a small one for `Segmenter.load(directory)` and the commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ..checkpoint import load_weights
from ..checkpoint.writing import save_safetensors
from ..config import load_config
from ..data import register_from_config
from ..model_source import dataset_classes, store_classes, stored_classes
from ..structures.classes import ClassTable
from ..utils.file_io import write_bytes

CANDIDATES = ("model_best.safetensors", "model_final.safetensors", "model_final.pth")


def find_weights(directory: Path) -> Path:
    """Return the best weights of a training output directory.

    Raises:
        FileNotFoundError: the directory has no weights.
    """
    for name in CANDIDATES:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} contains none of {', '.join(CANDIDATES)}; give a file with --weights")


def stored_or_registered_classes(cfg: CfgNode, source: Path) -> ClassTable:
    """Return the classes that the training stored, or else those of its datasets.

    Raises:
        ValueError: the classes are unknown.
    """
    table = stored_classes(source / "config.yaml", source / "model_best.safetensors")
    if table is None:
        register_from_config(cfg)
        table = dataset_classes(cfg)
    if table is None:
        raise ValueError(f"dataset {cfg.DATASETS.TEST[0]} has no class names; give them with --classes")
    return table


def portable(cfg: CfgNode) -> CfgNode:
    """Return the config without machine-specific settings: paths are empty, and MODEL.DEVICE is not there."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.TIMM.WEIGHTS = ""
    del cfg.MODEL["DEVICE"]  # what loads the model chooses it
    cfg.OUTPUT_DIR = "./output"
    return cfg


def pack_model(
    source: Path,
    target: Path,
    weights: Path | None = None,
    classes: Sequence[str] | None = None,
    dtype: torch.dtype | None = torch.float16,
) -> str:
    """Write model.safetensors, config.yaml without paths and device of this machine, and classes.json.

    Args:
        source: output directory of a training (config.yaml and weights).
        target: directory to write.
        weights: file; None: the best, else the final weights of `source`.
        classes: names; None: those of the training.
        dtype: storage; None: as in the input.

    Returns:
        A line about the file.

    Raises:
        FileNotFoundError, ValueError: no config, no weights, or unknown classes.
    """
    if not (source / "config.yaml").is_file():
        raise FileNotFoundError(f"{source} is not a training output directory: it has no config.yaml")
    cfg = load_config(source / "config.yaml")
    state = load_weights(str(weights or find_weights(source)))
    # Buffers that every model recreates are not stored.
    state = {k: v for k, v in state.items() if not k.endswith(("num_batches_tracked", "criterion.empty_weight"))}
    table = ClassTable(tuple(classes)) if classes else stored_or_registered_classes(cfg, source)
    file = save_safetensors(state, target / "model.safetensors", dtype)
    write_bytes(target / "config.yaml", portable(cfg).dump().encode())
    store_classes(table, target)
    return f"{file}: {file.stat().st_size / 2**20:.1f} MiB, {len(state)} tensors; classes: {', '.join(table.names)}"
