"""What the pickles of weight files may contain: the permitted names, and the constructors behind them.

Each constructor checks its arguments, and builds NumPy arrays, tensors and plain containers only. Nothing is allocated
on the word of a file: shapes and strides are compared with the bytes that are there.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAX_DIMENSIONS = 64  # NumPy's own limit
_HASHED_ALIKE = 2**61 - 1  # integers that differ by this have one hash, which makes dictionaries of them slow


class Refused(Exception):
    """A file contains what it may not; `_load` adds the name of the file."""


@dataclass(frozen=True)
class Constructor:
    """The constructor behind a permitted name."""

    name: str
    build: Any


class DType:
    """A NumPy dtype while it is read: plain numbers and text of fixed length only."""

    _CODE = re.compile(r"[<>=|]?(?:b1|\?|[iu][1248]|f[248]|c(?:8|16)|[SU]\d{1,5})")

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not self._CODE.fullmatch(code):
            raise Refused(f"an array of type {show(code)}")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Take the byte order, the second of NumPy's state; the others only describe structured types."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Storage:
    """The memory of tensors: 1-D, and the number of bytes in the file that it was read from."""

    memory: Tensor
    nbytes: int


def show(value: Any) -> str:
    """Return text for a message: short, printable, and never the contents of a container."""
    return ascii(value[:100]) if isinstance(value, (str, bytes)) else f"of a {type(value).__name__.strip('_')}"


def weight_of(value: Any) -> int:
    """Return the bytes that an object holds, without those of what it refers to."""
    if isinstance(value, (np.ndarray, np.generic, Tensor, Storage)):
        return value.nbytes
    if isinstance(value, (dict, set)):
        return 128 * len(value)
    return len(value) if isinstance(value, (str, bytes)) else 1


def sizes(shape: Any) -> tuple[int, ...]:
    """Return a shape (or strides) as a tuple of nonnegative int64 numbers."""
    shape = (shape,) if isinstance(shape, int) else shape
    small = isinstance(shape, tuple) and len(shape) <= _MAX_DIMENSIONS
    if not small or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise Refused("an array with an unusual shape")
    return shape


def array_of(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Return a writable, native-endian copy in C order, after comparing the declared size with the bytes."""
    if not isinstance(dtype, DType):
        raise Refused("an array without a plain type")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(raw, bytes):
        raise Refused("an array of Python objects")
    shape = sizes(shape)
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise EOFError(f"an array of shape {shape} and type {dtype.dtype} has {len(raw)} bytes")
    array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    array = array if axes is None else array.transpose(sizes(axes))
    return array.astype(dtype.dtype.newbyteorder("="), order="C", copy=True)


def _empty_array(array_type: Any, shape: Any, _: Any) -> np.ndarray:
    """Replace NumPy's `_reconstruct`: return an empty array, whose content is set by its state."""
    if array_type is not CONSTRUCTORS["numpy.ndarray"] or shape not in ((0,), 0):
        raise Refused("an array made in an unusual way")
    return np.empty(0, dtype=np.int8)


def _encode(text: Any, encoding: Any) -> bytes:
    """Return bytes that protocols 0 to 2 write as latin1 text; refuse every other codec."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode with codec {show(encoding)}")
    return text.encode("latin1")


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    """Return a dictionary of the pairs that Python 2 writes as argument."""
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise Refused("an unusual call of collections.OrderedDict")
    check_items({}, [pair[0] for pair in pairs])
    return OrderedDict(pairs)


def check_items(target: Any, keys: list[Any]) -> None:
    """Refuse items for anything but a dictionary, and keys whose hash can take forever (nested tuples)."""
    if not isinstance(target, dict):
        raise Refused(f"items for an object of type {type(target).__name__.strip('_')}")
    for key in keys:
        if not isinstance(key, (str, bytes, int, float, type(None))):
            raise Refused(f"a {type(key).__name__.strip('_')} as dictionary key")
        if isinstance(key, int) and abs(key) >= _HASHED_ALIKE:
            raise Refused("a number without bounds as dictionary key")


def _set(items: Any = ()) -> set[Any]:
    """Return a set of keys, which `plain_data` writes as sets."""
    if not isinstance(items, (list, tuple)):
        raise Refused("an unusual set")
    check_items({}, list(items))
    return set(items)


def _counter(counts: Any = None) -> Counter[Any]:
    """Return a counter, in which schedulers of torch hold their milestones."""
    if not isinstance(counts, (dict, type(None))):
        raise Refused("an unusual call of collections.Counter")
    return Counter(counts)


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    """Replace `bytes` and `bytearray`, which allocate as many bytes as a number says."""
    if isinstance(content, str):
        content = _encode(content, encoding)
    if not isinstance(content, bytes):
        raise TypeError("bytes of a number")
    return content


def _complex(real: Any, imaginary: Any) -> complex:
    if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
        raise Refused("an unusual complex number")
    return complex(real, imaginary)


def _device(*place: Any) -> torch.device:
    if not all(isinstance(part, (str, int)) for part in place):
        raise Refused("an unusual device")
    return torch.device(*place)


def _part_of(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> tuple[Tensor, int]:
    """Return a view of a storage after comparing it with its length, and the number of its elements."""
    if not isinstance(storage, Storage):
        raise Refused("an unusual tensor")
    memory = storage.memory
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise Refused("a tensor without a plain type")
        memory = memory.view(dtype)
    (offset,), size, stride = sizes(offset), sizes(size), sizes(stride)
    elements, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride))
    if len(size) != len(stride) or (elements and last >= len(memory)) or elements >= 2**60:
        raise EOFError(f"a tensor of size {size} needs more than its {len(memory)} elements")
    return memory.as_strided(size, stride, offset), elements


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a copy, which has the memory of the storage at most."""
    view, elements = _part_of(storage, offset, size, stride)
    if elements > len(storage.memory):
        raise EOFError(f"a tensor of size {tuple(view.shape)} needs more than its {len(storage.memory)} elements")
    return view.clone()


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a tensor that shares the memory of its storage; it may repeat elements (`expand`)."""
    return _part_of(storage, offset, size, stride)[0]


def _typed_view(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """Return a tensor of a type that has no storage class of its own."""
    return _part_of(storage, offset, size, stride, dtype)[0]


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """Return a tensor that was saved with attributes, without these."""
    if not isinstance(function, Constructor) or not function.name.startswith("torch._utils._rebuild"):
        raise Refused("an unusual tensor")
    return function.build(*arguments)  # type: ignore[no-any-return]


_BUILD: dict[str, Any] = {
    "numpy.ndarray": None,  # an argument, never called
    "numpy.dtype": DType,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}
for _module in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _BUILD[f"{_module}.multiarray._reconstruct"] = _empty_array
    _BUILD[f"{_module}.multiarray.scalar"] = lambda dtype, raw: array_of(raw, dtype, (), "C")[()]
    _BUILD[f"{_module}.numeric._frombuffer"] = array_of
for _module in ("builtins", "__builtin__"):  # Python 3 and 2
    _BUILD[f"{_module}.bytes"] = _bytes

# Further names in the files of `torch.save`.
_TORCH_BUILD: dict[str, Any] = {
    "collections.Counter": _counter,
    "torch.Size": lambda size=(): torch.Size(sizes(size)),
    "torch.device": _device,
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _typed_view,
}
for _module in ("builtins", "__builtin__"):
    _TORCH_BUILD |= {f"{_module}.set": _set, f"{_module}.bytearray": _bytes, f"{_module}.complex": _complex}


def _constructors(build: dict[str, Any]) -> dict[str, Any]:
    return {name: Constructor(name, function) for name, function in build.items()}


CONSTRUCTORS: dict[str, Any] = _constructors(_BUILD)

_STORAGE_NAMES = (
    "Double float64, Float float32, Half float16, BFloat16 bfloat16, Long int64, Int int32, Short int16, Char int8, "
    "Byte uint8, Bool bool, ComplexFloat complex64, ComplexDouble complex128"
)
STORAGES = {f"torch.{name}Storage": getattr(torch, dtype) for name, dtype in map(str.split, _STORAGE_NAMES.split(","))}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
TORCH_NAMES: dict[str, Any] = {
    **CONSTRUCTORS,
    **_constructors(_TORCH_BUILD),
    **STORAGES,
    **_DTYPES,
    "torch.storage.UntypedStorage": torch.uint8,
}

# Kinds of tensors that cannot be the weights of a model, by the functions that would make them.
UNUSABLE = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor (save tensor.to_dense() instead)",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor (save tensor.to_dense() instead)",
    "torch._utils._rebuild_nested_tensor": "a nested tensor (save its parts)",
    "torch._utils._rebuild_qtensor": "a quantized tensor (save tensor.dequantize() instead)",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has a shape but no values",
}
