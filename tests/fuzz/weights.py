"""Weight files: changed bytes, archives, pickles and trees of .pth, .pkl, .safetensors and index.json."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from mask2former.checkpoint import load_into, load_weights
from mask2former.checkpoint.reading import read_checkpoint

from .judgment import Case, require
from .mutation import damage_text, mutate, mutate_bytes, nasty, write_json

_EXECUTED = "executed"


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.sem_seg_head = nn.Linear(8, 3)


class _Call:
    """Pickles as a call of a function, which loading must not make."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def prepare(root: Path) -> dict[str, Any]:
    """Return a model and its weights."""
    torch.manual_seed(0)
    model = _Model()
    return {"model": model, "weights": {key: value.clone() for key, value in model.state_dict().items()}}


def run(state: dict[str, Any], case: Case) -> None:
    """Write a damaged file of any format; load it alone and into the model."""
    random = case.random
    weights = {key: value.clone() for key, value in state["weights"].items()}
    writer = random.choice(
        (_damaged_pth, _damaged_pth, _entries, _calls, _zip, _pickled, _pickled, _safetensors, _directory)
    )
    file, intact = writer(random, case.directory, weights)
    loaded = case.attempt(load_weights, file)
    read = case.attempt(read_checkpoint, file)
    into = case.attempt(load_into, state["model"], file)
    state["model"].load_state_dict(state["weights"])
    executed = [path for path in Path.cwd().glob(f"*{_EXECUTED}*")] + list(case.directory.rglob(f"*{_EXECUTED}*"))
    require(not executed, "a file ran code")
    require(loaded.accepted == read.accepted, f"two ways to read disagree: {loaded.error} {read.error}")
    require(not into.accepted or read.accepted, f"loads into a model, but cannot be read: {read.error}")
    if loaded.accepted:
        require(all(isinstance(value, Tensor) for value in loaded.value.values()), "not only tensors are returned")
        for key, value in loaded.value.items():
            require(isinstance(key, str), f"the key {key!r} is no text")
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            require(plain, f"{key} is returned as a weight, but is {value.layout} {value.dtype} on {value.device}")
            value.detach().to(torch.complex128).sum().item()  # the memory that it describes is there
        if intact is not None:
            found = read.value["model"]
            same = found.keys() == intact.keys() and all(_equal(found[key], intact[key]) for key in intact)
            require(same, "changed bytes of a .pth file went unnoticed")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _torch_bytes(content: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _wrapped(random: Random, weights: dict[str, Any]) -> Any:
    """Return the weights as the usual programs nest them."""
    key = random.choice((None, "model", "state_dict", "model_state_dict", "model_state"))
    return weights if key is None else {key: weights, "iteration": 5, "epoch": 1}


def _damaged_pth(random: Random, directory: Path, weights: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """Change bytes of a .pth file, which has checksums (not the one of old versions of PyTorch)."""
    zipped = random.random() < 0.7
    file = directory / random.choice(("a.pth", "a.pt", "a.bin", "a.pth.tar"))
    file.write_bytes(mutate_bytes(random, _torch_bytes({"model": weights}, zipped)))
    return file, weights if zipped else None


def _entries(random: Random, directory: Path, weights: dict[str, Any]) -> tuple[Path, None]:
    """Replace entries of the state dict by what is no weight, or a weight of another type and shape."""
    key = random.choice(list(weights))
    dense = torch.ones(3, 8)
    values: tuple[Any, ...] = (
        dense.to_sparse(), torch.ones(3, 8, device="meta"), torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        torch.ones(1),
        torch.ones(0, 5), torch.ones(()), dense.expand(5, 3, 8), dense.to(torch.bfloat16), dense.to(torch.complex64),
        dense.bool(),
        dense.t(), nn.Parameter(dense), dense.to(torch.float8_e4m3fn), torch.full((3, 8), float("nan")),
        torch.zeros(1).expand(1 << 30),
        torch.as_strided(torch.ones(4), (1 << 16, 1 << 16), (0, 0)), torch.ones(3, 8).to_sparse_csr(), {"a": dense},
        [dense], OrderedDict(),
        bytearray(50), nasty(random),
    )  # fmt: skip
    weights[random.choice((key, key, "module." + key, 5, "", "x" * 1000))] = random.choice(values)
    file = directory / "a.pth"
    content = random.choice(
        (
            _wrapped(random, weights),
            _wrapped(random, weights),
            [weights],
            None,
            5,
            {},
            weights["sem_seg_head.bias"],
            {"model": 5},
        )
    )
    try:
        file.write_bytes(_torch_bytes(content, random.random() < 0.7))
    except Exception:  # what PyTorch cannot save, nobody has
        file.write_bytes(_torch_bytes(weights["sem_seg_head.bias"]))
    return file, None


def _payload(random: Random, directory: Path) -> _Call:
    target = str(directory / _EXECUTED)
    code = f"open({target!r}, 'w').close()"
    return random.choice(
        (
            _Call(exec, code),
            _Call(eval, code),
            _Call(Path.touch, Path(target)),
            _Call(open, target, "w"),
            _Call(np.save, target, np.zeros(1)),
            _Call(torch.save, {}, target),
            _Call(bytearray, 1 << 31),
            _Call(bytes, 1 << 33),
            _Call(getattr, "x", "join"),
            _Call(torch.zeros, 1 << 33),
            _Call(np.zeros, 1 << 33),
            _Call(range, 1 << 40),
            _Call(OrderedDict, [[[1, 2], 3]]),
            _Call(torch.load, target),
            _Call(torch.hub.load_state_dict_from_url, "http://localhost/x"),
        )
    )


def _calls(random: Random, directory: Path, weights: dict[str, Any]) -> tuple[Path, None]:
    """Put a call of a function into a pickle."""
    content = {"model": {**weights, "extra": _payload(random, directory)}}
    if random.random() < 0.5:
        file = directory / "a.pkl"
        file.write_bytes(pickle.dumps(content, protocol=random.randrange(5)))
    else:
        file = directory / "a.pth"
        file.write_bytes(_torch_bytes(content, random.random() < 0.7))
    return file, None


def _zip(random: Random, directory: Path, weights: dict[str, Any]) -> tuple[Path, None]:
    """Write the archive of a .pth file again, with other entries."""
    entries: list[tuple[str, bytes]] = []
    with zipfile.ZipFile(io.BytesIO(_torch_bytes(weights))) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = random.randrange(len(entries))
    name, data = entries[number]
    changed: tuple[list[tuple[str, bytes]], ...] = (
        [],
        [(name, b"")],
        [(name, data), (name, data[::-1])],
        [(name, mutate_bytes(random, data))],
        [(damage_text(random, name).replace("\ud800", ""), data)],
        [(name, b"\0" * 20_000_000)],
        [("../" + _EXECUTED, b"x"), (name, data)],
        [(name, data), ("archive/code/x.py", b"open('executed', 'w')")],
    )
    entries[number : number + 1] = random.choice(changed)
    file = directory / "a.pth"
    with zipfile.ZipFile(file, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name or "x"), data)
    return file, None


def _pickled(random: Random, directory: Path, weights: dict[str, Any]) -> tuple[Path, None]:
    """Write a .pkl as detectron2's and Caffe2's are, with other entries or bytes."""
    arrays: dict[Any, Any] = {key: value.numpy() for key, value in weights.items()}
    choice = random.randrange(4)
    if choice == 0:
        arrays[random.choice(list(arrays))] = random.choice(
            (
                np.array(["a"]),
                np.array([None]),
                np.float64(3),
                np.zeros((2, 0)),
                np.zeros(3, ">f4"),
                np.zeros(3, [("a", "f4")]),
                nasty(random),
            )
        )
    content: Any = random.choice(({"model": arrays, "__author__": "x"}, {"blobs": arrays}, arrays, {"model": arrays}))
    if choice == 1:
        content = random.choice(
            ({"blobs": 5}, {"model": 5, "__author__": "x"}, [arrays], {}, nasty(random), {5: arrays}, {"model": None})
        )
    data = pickle.dumps(content, protocol=random.choice((2, 2, 3, 4, 0)))
    if choice > 1:
        data = mutate_bytes(random, data)
    if random.random() < 0.1:
        data = random.choice(
            (b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b".", b"]" * 10 + b".")
        )
    file = directory / "a.pkl"
    file.write_bytes(data)
    return file, None


def _safetensors(random: Random, directory: Path, weights: dict[str, Any]) -> tuple[Path, None]:
    """Change a .safetensors file, or the JSON of its header."""
    data = save_safetensors(weights)
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if random.random() < 0.6:
        text = write_json(random, mutate(random, header))
        length = random.choice((len(text),) * 5 + (0, len(text) + 1, 2**40, 2**64 - 1))
        data = length.to_bytes(8, "little") + text + rest
    else:
        data = mutate_bytes(random, data)
    file = directory / "a.safetensors"
    file.write_bytes(data)
    return file, None


def _directory(random: Random, directory: Path, weights: dict[str, Any]) -> tuple[Path, None]:
    """Write a directory in the form of Hugging Face, with a changed index."""
    keys = list(weights)
    parts = {"model-1.safetensors": keys[:3], "model-2.safetensors": keys[3:]}
    for name, part in parts.items():
        data = save_safetensors({key: weights[key] for key in part})
        (directory / name).write_bytes(mutate_bytes(random, data) if random.random() < 0.1 else data)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, part in parts.items() for key in part}}

    def other_file(random: Random, tree: Any) -> None:
        if isinstance(tree, dict) and isinstance(tree.get("weight_map"), dict):
            names = (
                "../model-1.safetensors",
                "/etc/passwd",
                "nothing.bin",
                "",
                ".",
                "model-1.safetensors/",
                5,
                None,
                ["a"],
                {},
            )
            tree["weight_map"]["x"] = random.choice(names)

    file = directory / "model.safetensors.index.json"
    file.write_bytes(write_json(random, mutate(random, index, (other_file,))))
    return random.choice((directory, file)), None
