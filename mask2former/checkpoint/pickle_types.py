"""The few object types that a checkpoint pickle may contain, rebuilt here with checked arguments.

Used by `safe_pickle`. `CONSTRUCTORS` maps each permitted global to a constructor of ours; the real callables
of NumPy, codecs and builtins are never handed to the unpickler.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Refused(Exception):
    """Raised while unpickling; `safe_pickle` turns it into UnsafeCheckpointError with the file's name."""


class DTypeStub:
    """Stand-in for a NumPy dtype: plain numbers and fixed-length text only."""

    _CODE = re.compile(r"[<>=|]?(?:b1|\?|[iu][1248]|f[248]|c(?:8|16)|[SU]\d{1,5})")

    def __init__(self, *args: Any) -> None:
        code = args[0] if args else None
        if isinstance(code, bytes):
            code = code.decode("ascii")
        if not isinstance(code, str) or not self._CODE.fullmatch(code):
            raise Refused(f"an array of type {code!r}")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """NumPy's (version, byte order, subarray, names, fields, item size, alignment, flags)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise Refused("a structured array type")
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise Refused(f"an array type with byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class ArrayStub:
    """Stand-in for an ndarray between NumPy's `_reconstruct` and the state that fills it."""

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value

    def set_state(self, state: Any) -> None:
        """NumPy's (version, shape, dtype, is Fortran order, bytes); very old files have no version."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("an array with an unknown kind of state")
        shape, dtype, fortran, raw = state[-4:]
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An own, native-endian array from its bytes, after comparing the announced size with what is there."""
    if not isinstance(dtype, DTypeStub):
        raise Refused("an array without a plain type")
    if not isinstance(raw, (bytes, bytearray, str)):
        raise Refused("an array of Python objects")
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise Refused(f"an array of shape {shape!r}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise EOFError(f"an array of shape {shape} and type {dtype.dtype} has {len(data)} bytes")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(dtype.dtype.newbyteorder("="), order="C", copy=True)


def plain_key(value: Any) -> Any:
    """A dictionary key or set member: scalars only, because hashing nested tuples can take for ever."""
    if not isinstance(value, (str, bytes, int, float, bool, type(None), np.generic)):
        raise Refused(f"a {type(value).__name__} as dictionary key")
    return value


class Constructor:
    """What a permitted global stands for: callable by the unpickler only, and immutable."""

    __slots__ = ("_build", "name")
    name: str
    _build: Callable[..., Any]

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_build", build)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused(f"a change to {self.name}")

    def __call__(self, args: tuple[Any, ...]) -> Any:
        try:
            return self._build(*args)
        except TypeError:  # wrong number or kind of arguments for what the real callable is used for
            raise Refused(f"an unusual call of {self.name}") from None


def _token_only(*args: Any) -> Any:
    raise Refused("a direct call of a NumPy type")


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> ArrayStub:
    if kind is not _NDARRAY or shape not in ((0,), 0):
        raise Refused(f"an array made in an unusual way (initial shape {shape!r})")
    return ArrayStub()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> ArrayStub:
    return ArrayStub(_array(raw, dtype, shape, order))


def _scalar(dtype: Any, raw: Any) -> Any:
    return _array(raw, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    """Protocol 2 writes bytes as text plus latin1; every other codec is an unneeded program."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode with codec {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _bytearray(raw: Any = b"", encoding: Any = None) -> bytearray:
    if isinstance(raw, str) and encoding == "latin-1":
        return bytearray(raw, "latin-1")
    if isinstance(raw, bytes):
        return bytearray(raw)
    raise Refused("bytearray with a size")


def _complex(real: Any, imaginary: Any) -> complex:
    if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
        raise Refused("an unusual call of complex")
    return complex(real, imaginary)


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((plain_key(key), value) for key, value in pairs)


def _set(items: Any = ()) -> set[Any]:
    return {plain_key(item) for item in items}


def _storage_from_bytes(raw: Any) -> Any:
    """A tensor's memory: an embedded torch archive, read by torch's own restricted loader."""
    if not isinstance(raw, bytes):
        raise Refused("tensor memory that is not bytes")
    try:
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(f"tensor memory that torch refuses ({str(error).splitlines()[0]})") from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused("tensor memory that is no storage")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, torch.storage.TypedStorage) or len(size) != len(stride):
        raise Refused("an unusual tensor")
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise Refused(f"a tensor with size {size!r}, stride {stride!r}, offset {offset!r}")
    memory = torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) > memory.numel() or (math.prod(size) and last >= memory.numel()):
        raise EOFError(f"a tensor of size {size} needs more than its memory of {memory.numel()} elements")
    return torch.as_strided(memory, size, stride, offset).clone()


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("an unusual parameter")
    return data


_NDARRAY = Constructor("numpy.ndarray", _token_only)

CONSTRUCTORS: dict[str, Constructor] = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": Constructor("numpy.dtype", DTypeStub),
    "_codecs.encode": Constructor("_codecs.encode", _encode),
    "collections.OrderedDict": Constructor("collections.OrderedDict", _ordered_dict),
    "torch._utils._rebuild_tensor_v2": Constructor("torch._utils._rebuild_tensor_v2", _tensor),
    "torch._utils._rebuild_parameter": Constructor("torch._utils._rebuild_parameter", _parameter),
    "torch.storage._load_from_bytes": Constructor("torch.storage._load_from_bytes", _storage_from_bytes),
}
for _module in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    CONSTRUCTORS[f"{_module}.multiarray._reconstruct"] = Constructor("numpy._reconstruct", _reconstruct)
    CONSTRUCTORS[f"{_module}.multiarray.scalar"] = Constructor("numpy.scalar", _scalar)
    CONSTRUCTORS[f"{_module}.numeric._frombuffer"] = Constructor("numpy._frombuffer", _from_buffer)
_BUILTINS: dict[str, Callable[..., Any]] = {
    "bytes": _no_bytes,
    "bytearray": _bytearray,
    "complex": _complex,
    "set": _set,
    "frozenset": _set,
}
for _module in ("builtins", "__builtin__"):  # Python 3 and 2
    for _name, _build in _BUILTINS.items():
        CONSTRUCTORS[f"{_module}.{_name}"] = Constructor(_name, _build)
