"""Loading of weight files: `.pkl`, `.pth`/`.pt`/`.bin`, `.safetensors` and Hugging Face directories.

No code from a file is run.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .. import zoo
from ..errors import BadRecordError, CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, first_few
from ..utils.downloads import local_path
from ..utils.file_io import is_special, read_json_object
from .file_kinds import kind_of
from .key_mapping import check_weight, to_current_layout
from .safe_pickle import load_pickle
from .torch_file import load_torch

# Weight files of a directory, by preference (Hugging Face's names, then ours).
_DIRECTORY_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model_final.safetensors",
    "model_final.pth",
)
_INDEX = ".index.json"
_HEURISTICS = "matching_heuristics=True"


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load the weights of a file, directory or URL under this project's names; other layouts are converted.

    Files of a bare backbone keep their own names (`res2.0.conv1.weight`, timm's, torchvision's):
    `checkpoint.load_into` matches them to a model.

    Args:
        path: `.pkl`, `.pth`, `.pt`, `.bin`, `.safetensors`, a Hugging Face directory or its `*.index.json`, an
            `https://` or `detectron2://` address, or the name or file name of a model of the zoo.

    Raises:
        FileNotFoundError: no such file, or no network.
        CheckpointError: the file cannot be used.
    """
    return to_current_layout(read_checkpoint(path)["model"])[0]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint: "model" with its raw state dict, and everything saved beside it.

    "matching_heuristics" and "__author__" are set as in detectron2, for files whose names must be matched.
    """
    # The query of a URL is the server's, apart from this option.
    query = {} if "://" in str(path) else parse_qs(urlparse(str(path)).query)
    file = locate(path)
    kind = kind_of(file)
    data: dict[str, Any]
    if file.name.endswith(_INDEX):
        data = {"model": _read_shards(file)}
    elif file.suffix == ".pkl" and kind == "other":
        data = _from_pickle(load_pickle(file), file)
    else:
        data = _from_torch(_read_tensors(file, kind), file)
    heuristics = str(path).endswith(f"?{_HEURISTICS}")
    query.pop("matching_heuristics", None)
    if query:
        raise ValueError(f"{path}: unknown option {sorted(query)}; only ?matching_heuristics=True is known")
    if not isinstance(data["model"], Mapping) or not data["model"]:
        raise CorruptCheckpointError(f"{file} contains no weights")
    data["model"] = _as_tensors(data["model"], file)
    data["matching_heuristics"] = heuristics or data.get("matching_heuristics") is True
    data["__author__"] = author if isinstance(author := data.get("__author__"), str) else ""
    return data


def locate(path: str | os.PathLike[str]) -> Path:
    """Return the local file for a path, directory, URL or published model's file name.

    Raises:
        FileNotFoundError: no such file; the message names the files and where they were expected.
        CheckpointError: it is a pipe or device.
    """
    text = str(path)
    if "://" in text:
        url = text.removesuffix(f"?{_HEURISTICS}")
        published = zoo.entry_of_file(url)
        return zoo.resolve_weights(published) if published else Path(local_path(url))
    local = Path(os.path.expanduser(text if os.path.exists(text) else text.split("?")[0]))
    if os.path.isdir(local):
        for name in _DIRECTORY_FILES:
            if os.path.isfile(local / name):
                return local / name
        raise FileNotFoundError(f"no weights in directory {local}: it has none of {', '.join(_DIRECTORY_FILES)}")
    if os.path.isfile(local):
        return local
    if is_special(local):
        raise CheckpointError(f"{local} is a pipe or device, not a file of weights")
    entry = zoo.lookup(text) if text in zoo.list_models() else zoo.entry_of_file(local.name)
    if entry is None:
        raise FileNotFoundError(f"checkpoint not found: {local.absolute()}")
    return zoo.resolve_weights(entry)


def _from_pickle(data: Any, file: Path) -> dict[str, Any]:
    """Convert the content of a detectron2 zoo file, or of a bare Caffe2 dictionary of Detectron 1."""
    if not isinstance(data, dict):
        raise CorruptCheckpointError(f"{file} contains a {type(data).__name__}, not a dictionary of weights")
    if "model" in data and ("__author__" in data or isinstance(data["model"], Mapping)):
        return {"__author__": "unknown", **data}
    blobs = data.get("blobs", data)
    if not isinstance(blobs, Mapping):
        raise CorruptCheckpointError(f"{file} contains no dictionary of weights")
    weights = {key: value for key, value in blobs.items() if not str(key).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _from_torch(data: Any, file: Path) -> dict[str, Any]:
    """Find the state dict: under one of its usual keys, else the only dictionary of tensors, else the file itself."""
    if not isinstance(data, Mapping):
        raise CorruptCheckpointError(f"{file} contains a {type(data).__name__}, not a dictionary of weights")
    for name in ("model", "state_dict", "model_state_dict", "model_state"):
        if isinstance(data.get(name), Mapping) and data[name]:
            rest = {key: value for key, value in data.items() if key != name}
            # pycls files (.pyth) name their layers without the model's prefix
            extra = {"matching_heuristics": True} if name == "model_state" else {}
            return {**rest, **extra, "model": data[name]}
    if any(isinstance(value, Tensor) for value in data.values()):
        return {"model": data}
    # EMA weights alone, or weights under a name of another project.
    found = {key: state for key, value in data.items() if (state := _state_in(value))}
    if len(found) > 1:
        raise CorruptCheckpointError(
            f"{file} contains several dictionaries of weights: {', '.join(map(repr, found))}. Save the one to use."
        )
    return {"model": next(iter(found.values()), data)}


def _state_in(value: Any) -> Mapping[str, Any] | None:
    """Return a dictionary of tensors only; also that of our EMA weights, {"average": {...}, "updates": N}."""
    if isinstance(value, Mapping) and isinstance(value.get("average"), Mapping):
        value = value["average"]
    if not isinstance(value, Mapping) or not value:
        return None
    plain = all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    return value if plain else None


def _as_tensors(state: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    out: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            if array.dtype.kind not in "biufc":
                raise CorruptCheckpointError(f"{file}: entry {key!r} is text, not a weight")
            value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        if not isinstance(value, Tensor):
            raise CorruptCheckpointError(f"{file}: entry {key!r} is a {type(value).__name__}, not a weight")
        check_weight(str(key), value, str(file))
        out[str(key)] = value
    metadata = getattr(state, "_metadata", None)
    if isinstance(metadata, Mapping):
        out._metadata = metadata  # type: ignore[attr-defined]
    return out


def _read_tensors(file: Path, kind: str) -> Any:
    """Load a file of safetensors or torch, by its content where that tells, else by its suffix."""
    is_safetensors = kind == "safetensors" or (kind == "other" and file.suffix == ".safetensors")
    return _read_safetensors(file) if is_safetensors else load_torch(file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(file), framework="pt", device="cpu") as archive:
            return {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118  (no mapping)
    except MemoryError:
        raise
    except Exception as error:  # SafetensorError, and whatever unusual types and shapes cause in torch
        raise CorruptCheckpointError(
            f"{file}: truncated, damaged or not a safetensors file ({type(error).__name__}: {str(error)[:200]}). "
            "Download or save it again."
        ) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Load a model from several files, listed in Hugging Face's index."""
    try:
        listed = read_json_object(str(index)).get("weight_map")
    except BadRecordError as error:
        raise CorruptCheckpointError(f"{index} is not an index of weight files: {error.reason}") from error
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CorruptCheckpointError(
            f"{index} is not an index of weight files: its 'weight_map' must give a file name for each weight"
        )
    state: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name or "\\" in name or name == "..":
            raise UnsafeCheckpointError(f"{index}: refused, because it names a file in another directory: {name!r}")
        shard = index.parent / name
        if not shard.is_file():
            raise FileNotFoundError(f"{index} lists {name!r}, which is missing from its directory")
        part = _read_tensors(shard, kind_of(shard))
        if not isinstance(part, Mapping):
            raise CorruptCheckpointError(f"{shard} contains a {type(part).__name__}, not a dictionary of weights")
        state.update(part)
    absent = sorted(listed.keys() - state.keys())
    if absent:
        raise CorruptCheckpointError(
            f"{index} lists {len(absent)} weights that its files do not have, for example {first_few(absent)}"
        )
    return state
