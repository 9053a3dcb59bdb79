"""Directories of Hugging Face transformers' Mask2Former from and to ours, with Swin backbones.

Weights are only renamed and regrouped, never changed. Each conversion is verified: it is reversed, and the result must
equal the input bit for bit, with no weight left over on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.data import MetadataCatalog
from torch import Tensor

from .. import data, zoo  # noqa: F401  (data registers the names of datasets)
from ..checkpoint import CheckpointError, huggingface, load_weights, save_safetensors
from ..checkpoint.huggingface_config import (
    class_names_from_huggingface,
    config_from_huggingface,
    config_to_huggingface,
    preprocessor_to_huggingface,
)
from ..checkpoint.reading import read_checkpoint
from ..config import load_config
from ..utils.file_io import write_bytes, write_json


def from_huggingface(source: str, target: Path, task: str | None = None, dtype: torch.dtype | None = None) -> int:
    """Write model.safetensors, config.yaml and classes.json of a Hugging Face directory.

    Args:
        source: directory with config.json and model.safetensors (or pytorch_model.bin, or shards).
        target: directory to write.
        task: task of the model; None: what its config says.
        dtype: storage; None: as in the input.

    Returns:
        The number of weights.

    Raises:
        CheckpointError: other weights, or a conversion that is not exact.
        FileNotFoundError, ValueError: no such directory, or a config that has no counterpart here.
    """
    settings = config_from_huggingface(source, task)
    theirs = read_checkpoint(source)["model"]
    if not huggingface.is_huggingface(theirs):
        raise CheckpointError(f"{source} does not hold the weights of a Mask2Former of Hugging Face transformers")
    ours = huggingface.from_huggingface(theirs)
    unknown = [key for key in ours if not key.startswith(("backbone.", "sem_seg_head.", "criterion."))]
    if unknown:
        raise CheckpointError(f"{source}: {len(unknown)} unknown weights: {', '.join(unknown[:5])}")
    restored = huggingface.from_huggingface(huggingface.to_huggingface(ours))
    _check_equal(ours, restored)
    _check_coverage(theirs, ours)
    save_safetensors(ours, target / "model.safetensors", dtype, {"source": source})
    write_bytes(target / "config.yaml", yaml.safe_dump(_nested(settings), sort_keys=False).encode())
    write_json(target / "classes.json", class_names_from_huggingface(source), indent=2)
    return len(ours)


def to_huggingface(
    source: str,
    target: Path,
    config_file: str | None = None,
    dataset: str | None = None,
    dtype: torch.dtype | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Write a directory for `Mask2FormerForUniversalSegmentation.from_pretrained`.

    Args:
        source: weights of this project or of the reference implementation, or the name of a published model.
        target: directory to write.
        config_file: config of the model; None: that of the published model.
        dataset: registered dataset for the class names; None: DATASETS.TEST[0].
        dtype: storage; None: as in the input.
        overrides: config keys and values.

    Returns:
        The number of weights.

    Raises:
        CheckpointError: a conversion that is not exact.
        FileNotFoundError, ValueError: no such file, no config, or a dataset without class names.
    """
    if source in zoo.list_models():
        entry = zoo.lookup(source)
        source, config_file = str(zoo.resolve_weights(entry)), config_file or entry.config_file
    if config_file is None:
        raise ValueError("to-hf needs --config-file, because a weights file does not describe the model")
    cfg = load_config(config_file, overrides)
    ours = load_weights(source)
    settings = config_to_huggingface(cfg, _class_names(cfg, dataset))
    theirs = huggingface.to_huggingface(ours)
    _check_equal(ours, huggingface.from_huggingface(theirs))
    save_safetensors(theirs, target / "model.safetensors", dtype)
    write_json(target / "config.json", settings, indent=2)
    write_json(target / "preprocessor_config.json", preprocessor_to_huggingface(cfg), indent=2)
    return len(theirs)


def _check_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    skipped = ("relative_position_index", "pixel_mean", "pixel_std")  # computed from the config
    first = {key: value for key, value in first.items() if not key.endswith(skipped)}
    second = {key: value for key, value in second.items() if not key.endswith(skipped)}
    if first.keys() != second.keys():
        raise CheckpointError(f"conversion lost or added weights: {sorted(first.keys() ^ second.keys())[:5]}")
    for key, value in first.items():
        if not torch.equal(value, second[key]):
            raise CheckpointError(f"conversion changed {key}")


def _check_coverage(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Check that both sides have the same number of values; a wrong merge would lose some."""
    unused = (".relative_position_index", ".layernorm.weight", ".layernorm.bias")
    encoder = "pixel_level_module.encoder."
    before = sum(v.numel() for k, v in theirs.items() if not (encoder in k and k.endswith(unused)))
    after = sum(v.numel() for k, v in ours.items() if not k.endswith(unused[0]))
    if before != after:
        raise CheckpointError(f"conversion changed the number of values from {before} to {after}")


def _class_names(cfg: Any, dataset: str | None) -> list[str] | None:
    """Return the class names of the dataset, in the order of the model's classes, or None if it has none."""
    name = dataset or (cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else None)
    if name is None:
        return None
    metadata = MetadataCatalog.get(name)
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for key in ("stuff_classes", "thing_classes"):
        names = metadata.get(key)
        if names is not None and len(names) == count:
            return list(names)
    if dataset is not None:
        raise ValueError(
            f"dataset {dataset!r} has no list of {count} class names (NUM_CLASSES); choose another --dataset"
        )
    return None


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = out
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return out
