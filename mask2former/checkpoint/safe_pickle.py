"""Read detectron2's `.pkl` checkpoints without running what is inside them.

A pickle is a small program. Three safeguards keep it from doing harm:

1. `find_class` knows the few names that weights need (NumPy arrays, scalars and dtypes, tensors, `OrderedDict`)
   and returns constructors written here, which check their arguments; no object of another module is ever
   looked up. Calls and states (REDUCE, BUILD) reach these constructors, arrays and dtypes only.
2. Memory is not allocated on the word of a file: lengths, shapes and strides are compared with the bytes left in
   it, and objects built repeatedly from the same bytes are counted (`_allowance`).
3. The result is measured before it is returned: known types only, at most `_MAX_DEPTH` nested containers, and no
   larger than `_allowance` with every shared reference expanded, so that printing or copying it is safe.

**Bound.** A file of N bytes makes the process allocate at most 200 N + 2 MiB: 5 N + 1 MiB for its text, bytes, arrays
and tensors (a normal file needs 2 N to 4 N), the rest for small objects, of which one byte can create one.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptCheckpointError, UnsafeCheckpointError

_MAX_DEPTH = 50
_MAX_DIMENSIONS = 64  # NumPy's own limit
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a pickle file made of containers, text, numbers, arrays and tensors only.

    Byte strings of Python 2 are decoded as latin1, as detectron2 does.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: the file contains anything else; the message names it.
        CorruptCheckpointError: the file is truncated or is not a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    with path.open("rb") as file:
        return _load(file, path.stat().st_size, str(path))


def load_pickle_bytes(data: bytes, name: str = "<bytes>") -> Any:
    """Return the contents of a pickle in memory, as `load_pickle` does; `name` is used in messages."""
    return _load(io.BytesIO(data), len(data), name)


def _load(file: IO[bytes], size: int, name: str) -> Any:
    try:
        result = _Unpickler(_BoundedReader(file, size), size, _CONSTRUCTORS).load()
        _measure(result, _allowance(size), {})
        return result
    except _Refused as error:
        raise UnsafeCheckpointError(
            f"{name}: refused, because it contains {error}. A checkpoint may contain only arrays and plain "
            "containers. If you made this file yourself, save its state dict as .safetensors instead."
        ) from None
    except MemoryError:
        raise
    # A corrupt file can fail at any instruction, with any exception.
    except Exception as error:
        raise CorruptCheckpointError(
            f"{name}: truncated or not a pickle ({type(error).__name__}: {str(error)[:200]}). "
            "Download or save it again."
        ) from error


class _Refused(Exception):
    """A file contains what it may not; `_load` adds the name of the file."""


def _allowance(size: int) -> int:
    """Return how many bytes may be built out of a file of `size` bytes: once as bytes, as storage and as tensor."""
    return 4 * size + 2**20


class _BoundedReader:
    """A file whose reads never ask for more than is left, so a false length cannot allocate memory."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, count: int) -> bytes:
        if count > self._left or count < 0:
            raise EOFError(f"{count} bytes declared, {self._left} left")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


@dataclass(frozen=True)
class _Constructor:
    """The constructor behind a permitted name."""

    name: str
    build: Any


class _DType:
    """A NumPy dtype while it is read: plain numbers and text of fixed length only."""

    _CODE = re.compile(r"[<>=|]?(?:b1|\?|[iu][1248]|f[248]|c(?:8|16)|[SU]\d{1,5})")

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not self._CODE.fullmatch(code):
            raise _Refused(f"an array of type {_show(code)}")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Take the byte order, the second of NumPy's state; the others only describe structured types."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Storage:
    """The memory of tensors: 1-D, and the number of bytes in the file that it was read from."""

    memory: Tensor
    nbytes: int


_PyUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Unpickler(_PyUnpickler):
    """Python's unpickler: unlike the one in C its memo grows by use only, and its instructions can be overridden."""

    # BYTEARRAY8 allocates before it reads, so it is read as bytes.
    dispatch: dict[int, Any] = {**_PyUnpickler.dispatch, pickle.BYTEARRAY8[0]: _PyUnpickler.load_binbytes8}

    def __init__(self, file: _BoundedReader, size: int, allowed: dict[str, Any]) -> None:
        super().__init__(file, fix_imports=False, encoding="latin1")
        self._left = _allowance(size)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") not in self._allowed:
            raise _Refused(_show(full)[1:-1])
        return self._allowed[full]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a reference to an object outside the file (persistent id)")

    def _count(self, value: Any) -> None:
        self._left -= _weight(value)
        if self._left < 0:
            raise _Refused("the same data over and over, far more than the file's size")

    def load_reduce(self) -> None:
        arguments, constructor = self.stack.pop(), self.stack[-1]
        if not isinstance(constructor, _Constructor) or not isinstance(arguments, tuple):
            raise _Refused(f"a call of something that is no known constructor ({type(constructor).__name__})")
        try:
            self.stack[-1] = constructor.build(*arguments)
        except TypeError:  # not the arguments of a pickle of weights
            raise _Refused(f"an unusual call of {constructor.name}") from None
        self._count(self.stack[-1])

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _DType):
            target.set_state(state)
        elif isinstance(target, np.ndarray) and isinstance(state, tuple) and len(state) in (4, 5):
            shape, dtype, fortran, raw = state[-4:]  # NumPy 1.0 wrote no version before these
            array = _array(raw, dtype, shape, "F" if fortran else "C")
            self._count(array)
            target.__setstate__((1, array.shape, array.dtype, False, array.tobytes()))  # type: ignore[arg-type]
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            # torch attaches module versions to a state dict in this way; other attributes are not needed.
            target._metadata = state.get("_metadata")  # type: ignore[attr-defined]
        else:
            raise _Refused(f"state for an object of type {type(target).__name__.strip('_')}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        _check_items(self.stack[-3], self.stack[-2:-1])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        _check_items(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        _check_items({}, self.stack[::2])
        super().load_dict()

    dispatch[pickle.DICT[0]] = load_dict


def _refuse(instruction: str) -> Callable[[Any], None]:
    def refuse(unpickler: Any) -> None:
        raise _Refused(f"the pickle instruction {instruction}, which no array needs")

    return refuse


# Other ways to make objects than REDUCE, registries and buffers outside the file, sets.
_REFUSED = "INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER EMPTY_SET FROZENSET"
_Unpickler.dispatch.update({getattr(pickle, name)[0]: _refuse(name) for name in _REFUSED.split()})


class _StorageUnpickler(_Unpickler):
    """Unpickler for torch's old format, in which a storage is a persistent id with its type."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _check_items(target: Any, keys: list[Any]) -> None:
    """Refuse items for anything but a dictionary, and keys whose hash can take forever (nested tuples)."""
    if not isinstance(target, dict):
        raise _Refused(f"items for an object of type {type(target).__name__.strip('_')}")
    for key in keys:
        if not isinstance(key, (str, bytes, int, float, type(None))):
            raise _Refused(f"a {type(key).__name__.strip('_')} as dictionary key")


def _show(value: Any) -> str:
    """Return text for a message: short, printable, and never the contents of a container."""
    return ascii(value[:100]) if isinstance(value, (str, bytes)) else f"of a {type(value).__name__.strip('_')}"


def _weight(value: Any) -> int:
    """Return the bytes that an object holds, without those of what it refers to."""
    if isinstance(value, (np.ndarray, np.generic, Tensor, _Storage)):
        return value.nbytes
    if isinstance(value, OrderedDict):
        return 128 * len(value)
    return len(value) if isinstance(value, (str, bytes)) else 1


def _measure(value: Any, limit: int, known: dict[int, tuple[int, int]], depth: int = 0) -> tuple[int, int]:
    """Return size and height of a value as a tree, with every shared reference expanded.

    Each container is visited once: `known` holds those that were visited, by identity.
    """
    if isinstance(value, _Constructor):
        raise _Refused(f"{value.name} as a value")
    if value is None or isinstance(value, (str, bytes, int, float, np.ndarray, np.generic, Tensor)):
        return _weight(value), 0
    if not isinstance(value, (dict, list, tuple)):
        raise _Refused(f"a bare {type(value).__name__.strip('_').lower()}")
    if not value:
        return 1, 1
    if id(value) not in known:
        size, height = 1, depth  # a container inside itself is deeper than any limit
        if depth <= _MAX_DEPTH:
            height = 0
            parts = [*value, *value.values(), getattr(value, "_metadata", None)] if isinstance(value, dict) else value
            for part in parts:
                part_size, part_height = _measure(part, limit, known, depth + 1)
                size, height = size + part_size, max(height, part_height)
        if height >= _MAX_DEPTH:
            raise _Refused(f"containers in containers, more than {_MAX_DEPTH} deep")
        if size > limit:
            raise _Refused("the same data over and over, far more than the file's size")
        known[id(value)] = size, height + 1
    return known[id(value)]


def _sizes(shape: Any) -> tuple[int, ...]:
    """Return a shape (or strides) as a tuple of nonnegative int64 numbers."""
    shape = (shape,) if isinstance(shape, int) else shape
    small = isinstance(shape, tuple) and len(shape) <= _MAX_DIMENSIONS
    if not small or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise _Refused("an array with an unusual shape")
    return shape


def _array(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Return a writable, native-endian copy in C order, after comparing the declared size with the bytes."""
    if not isinstance(dtype, _DType):
        raise _Refused("an array without a plain type")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(raw, bytes):
        raise _Refused("an array of Python objects")
    shape = _sizes(shape)
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise EOFError(f"an array of shape {shape} and type {dtype.dtype} has {len(raw)} bytes")
    array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    array = array if axes is None else array.transpose(_sizes(axes))
    return array.astype(dtype.dtype.newbyteorder("="), order="C", copy=True)


def _empty_array(array_type: Any, shape: Any, _: Any) -> np.ndarray:
    """Replace NumPy's `_reconstruct`: return an empty array, whose content is set by its state."""
    if array_type is not _CONSTRUCTORS["numpy.ndarray"] or shape not in ((0,), 0):
        raise _Refused("an array made in an unusual way")
    return np.empty(0, dtype=np.int8)


def _encode(text: Any, encoding: Any) -> bytes:
    """Return bytes that protocols 0 to 2 write as latin1 text; refuse every other codec."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode with codec {_show(encoding)}")
    return text.encode("latin1")


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    """Return a dictionary of the pairs that Python 2 writes as argument."""
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise _Refused("an unusual call of collections.OrderedDict")
    _check_items({}, [pair[0] for pair in pairs])
    return OrderedDict(pairs)


def _storage(raw: Any) -> _Storage:
    """Read one storage in torch's old format.

    It consists of five pickles (magic number, version, machine, storage, keys), the number of elements (int64) and the
    elements.
    """
    if not isinstance(raw, bytes):
        raise _Refused("a storage that is not bytes")
    file = _BoundedReader(io.BytesIO(raw), len(raw))
    magic, _, _, storage, _ = (_StorageUnpickler(file, len(raw), _STORAGES).load() for _ in range(5))
    if type(magic) is not int or magic != _TORCH_MAGIC:
        raise _Refused("a storage in an unknown format")
    if not isinstance(storage, tuple) or len(storage) < 2 or not isinstance(storage[1], torch.dtype):
        raise _Refused("a storage without a plain type")
    (count,) = struct.unpack("<q", file.read(8))
    data = bytearray(file.read(count * storage[1].itemsize))
    memory = torch.frombuffer(data, dtype=storage[1]) if data else torch.empty(0, dtype=storage[1])
    return _Storage(memory, len(raw))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise _Refused("an unusual tensor")
    (offset,), size, stride = _sizes(offset), _sizes(size), _sizes(stride)
    elements, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride))
    if len(size) != len(stride) or elements > len(storage.memory) or (elements and last >= len(storage.memory)):
        raise EOFError(f"a tensor of size {size} needs more than its {len(storage.memory)} elements")
    return storage.memory.as_strided(size, stride, offset).clone()


_BUILD: dict[str, Any] = {
    "numpy.ndarray": None,  # an argument, never called
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: b"",
    "__builtin__.bytes": lambda: b"",
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.storage._load_from_bytes": _storage,
}
for _module in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _BUILD[f"{_module}.multiarray._reconstruct"] = _empty_array
    _BUILD[f"{_module}.multiarray.scalar"] = lambda dtype, raw: _array(raw, dtype, (), "C")[()]
    _BUILD[f"{_module}.numeric._frombuffer"] = _array
_CONSTRUCTORS: dict[str, Any] = {name: _Constructor(name, build) for name, build in _BUILD.items()}
_STORAGE_NAMES = (
    "Double float64, Float float32, Half float16, BFloat16 bfloat16, Long int64, Int int32, Short int16, Char int8, "
    "Byte uint8, Bool bool, ComplexFloat complex64, ComplexDouble complex128"
)
_STORAGES = {f"torch.{name}Storage": getattr(torch, dtype) for name, dtype in map(str.split, _STORAGE_NAMES.split(","))}
