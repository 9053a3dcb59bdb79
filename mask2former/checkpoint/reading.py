"""Loading of weight files: `.pkl`, `.pth`/`.pt`/`.bin`, `.safetensors` and Hugging Face directories.

No code from a file is run.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import zoo
from ..errors import CorruptCheckpointError, UnsafeCheckpointError
from .key_mapping import to_current_layout
from .safe_pickle import load_pickle

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
    query = parse_qs(urlparse(str(path)).query)
    file = locate(path)
    if file.name.endswith(".pkl"):
        data = _from_pickle(load_pickle(file), file)
    elif file.name.endswith(_INDEX):
        data = {"model": _read_shards(file)}
    elif file.suffix == ".safetensors":
        data = {"model": _read_safetensors(file)}
    else:
        data = _from_torch(_torch_load(file), file)
    if query.pop("matching_heuristics", ["False"]) == ["True"]:
        data["matching_heuristics"] = True
    if query:
        raise ValueError(f"{path}: unknown option {sorted(query)}; only ?matching_heuristics=True is known")
    data["model"] = _as_tensors(data["model"], file)
    return data


def locate(path: str | os.PathLike[str]) -> Path:
    """Return the local file for a path, directory, URL or published model's file name.

    Raises:
        FileNotFoundError: no such file; the message names the files and where they were expected.
    """
    text = str(path)
    if "://" in text:
        url = urlparse(text)._replace(query="").geturl()
        published = zoo.entry_of_file(url)
        return zoo.resolve_weights(published) if published else Path(_download(url))
    local = Path(text if os.path.exists(text) else text.split("?")[0]).expanduser()
    if local.is_dir():
        for name in _DIRECTORY_FILES:
            if (local / name).is_file():
                return local / name
        raise FileNotFoundError(f"no weights in directory {local}: it has none of {', '.join(_DIRECTORY_FILES)}")
    if local.is_file():
        return local
    entry = zoo.lookup(text) if text in zoo.list_models() else zoo.entry_of_file(local.name)
    if entry is None:
        raise FileNotFoundError(f"checkpoint not found: {local.absolute()}")
    return zoo.resolve_weights(entry)


def _download(url: str) -> str:
    try:
        return PathManager.get_local_path(url)
    except (OSError, RuntimeError, KeyError) as error:
        raise FileNotFoundError(
            f"cannot download {url} ({type(error).__name__}: {error}). Download it on another machine and "
            "set MODEL.WEIGHTS to the local path."
        ) from error


def _from_pickle(data: Any, file: Path) -> dict[str, Any]:
    """Convert the content of a detectron2 zoo file, or of a bare Caffe2 dictionary of Detectron 1."""
    if not isinstance(data, dict):
        raise CorruptCheckpointError(f"{file} contains a {type(data).__name__}, not a dictionary of weights")
    if "model" in data and "__author__" in data:
        return data
    if "model" in data and isinstance(data["model"], Mapping):
        return {**data, "__author__": "unknown"}
    blobs = data.get("blobs", data)
    weights = {key: value for key, value in blobs.items() if not str(key).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _from_torch(data: Any, file: Path) -> dict[str, Any]:
    """Find the state dict under one of its usual keys."""
    if not isinstance(data, Mapping):
        raise CorruptCheckpointError(f"{file} contains a {type(data).__name__}, not a dictionary of weights")
    for name in ("model", "state_dict", "model_state_dict", "model_state"):
        if isinstance(data.get(name), Mapping):
            rest = {key: value for key, value in data.items() if key != name}
            # pycls files (.pyth) name their layers without the model's prefix
            extra = {"matching_heuristics": True} if name == "model_state" else {}
            return {**rest, **extra, "model": data[name]}
    return {"model": data}


def _as_tensors(state: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    out: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            if array.dtype.kind not in "biufc":
                raise CorruptCheckpointError(f"{file}: entry {key!r} is text, not a weight")
            value = torch.from_numpy(array)
        if not isinstance(value, Tensor):
            raise CorruptCheckpointError(f"{file}: entry {key!r} is a {type(value).__name__}, not a weight")
        out[str(key)] = value
    metadata = getattr(state, "_metadata", None)
    if isinstance(metadata, Mapping):
        out._metadata = metadata  # type: ignore[attr-defined]
    return out


def _torch_load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # for a corrupt file torch raises RuntimeError, EOFError, ValueError, OSError, ...
        reason = str(error).rpartition("WeightsUnpickler error:")[2]
        refused = re.search(r"(?:GLOBAL |but got )([^\s,]+)", reason)
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise UnsafeCheckpointError(
                f"{file}: refused, because it contains {refused[1]}. A checkpoint may contain only tensors "
                "and plain containers. If you trust its origin, load it once with torch.load(..., "
                "weights_only=False) and save its state dict as .safetensors."
            ) from None
        raise CorruptCheckpointError(f"{file}: {_diagnosis(file)} ({type(error).__name__})") from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(file), framework="pt", device="cpu") as archive:
            return {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{file}: {_diagnosis(file)} ({error})") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Load a model from several files, listed in Hugging Face's index."""
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptCheckpointError(f"{index} is not an index of weight files ({error!r})") from error
    state: dict[str, Tensor] = {}
    for name in shards:
        if Path(name).name != name:
            raise UnsafeCheckpointError(f"{index}: refused, because it names a file in another directory: {name!r}")
        shard = index.parent / name
        if not shard.is_file():
            raise FileNotFoundError(f"{index} lists {name!r}, which is missing from its directory")
        part = _read_safetensors(shard) if shard.suffix == ".safetensors" else _torch_load(shard)
        state.update(part)
    return state


def _diagnosis(file: Path) -> str:
    """Say why a file cannot be read, and what to do."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(64)
    if size == 0:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights; run `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "this is a web page, not weights; the download address was wrong"
    if head.startswith(b"PK") and not zipfile.is_zipfile(file):
        return f"the file is truncated after {size} bytes; download or save it again"
    return "the file is corrupt or not a checkpoint; download or save it again"
