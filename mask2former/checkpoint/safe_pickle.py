"""Read pickles of weights (detectron2's `.pkl`, and those inside torch's files) without running what is in them.

A pickle is a small program. Three safeguards keep it from doing harm:

1. `find_class` knows the few names that weights need (NumPy arrays, scalars and dtypes, tensors, `OrderedDict`)
   and returns the constructors of `constructors.py`, which check their arguments; no object of another module is ever
   looked up. Calls and states (REDUCE, BUILD) reach these constructors, arrays and dtypes only.
2. Memory is not allocated on the word of a file: lengths, shapes and strides are compared with the bytes left in
   it, and objects built repeatedly from the same bytes are counted (`allowance`).
3. The result is measured before it is returned: known types only, at most `_MAX_DEPTH` nested containers, and no
   larger than `allowance` with every shared reference expanded, so that printing or copying it is safe.

**Bound.** A file of N bytes makes the process allocate at most 200 N + 2 MiB: 5 N + 1 MiB for its text, bytes, arrays
and tensors (a normal file needs 2 N to 4 N), the rest for small objects, of which one byte can create one.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptCheckpointError, UnsafeCheckpointError
from .constructors import (
    CONSTRUCTORS,
    STORAGES,
    UNUSABLE,
    Constructor,
    DType,
    Refused,
    Storage,
    array_of,
    check_items,
    show,
    weight_of,
)

_MAX_DEPTH = 50
_PLAIN = (str, bytes, int, float, complex, set, np.ndarray, np.generic, Tensor, torch.dtype, torch.device)
TORCH_MAGIC = 0x1950A86A20F9469CFC6C


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
    with told_with(name):
        result = Unpickler(BoundedReader(file, size), size, _NAMES).load()
        check_result(result, size)
        return result


@contextlib.contextmanager
def told_with(name: str) -> Iterator[None]:
    """Raise what goes wrong in reading a file as an error of this package that names the file."""
    try:
        yield
    except Refused as error:
        raise UnsafeCheckpointError(
            f"{name}: refused, because it contains {error}. A checkpoint may contain only tensors, arrays and plain "
            "containers. If you trust its origin, load it in Python and save its state dict as .safetensors."
        ) from None
    except (MemoryError, UnsafeCheckpointError, CorruptCheckpointError):
        raise
    # A corrupt file can fail at any instruction, with any exception.
    except Exception as error:
        raise CorruptCheckpointError(
            f"{name}: truncated, damaged or not a checkpoint ({type(error).__name__}: {str(error)[:200]}). "
            "Download or save it again."
        ) from error


def check_result(result: Any, size: int) -> None:
    """Measure what was built out of a file of `size` bytes; raise `Refused` if it is not plain data in its bounds."""
    _measure(result, allowance(size), {})


def allowance(size: int) -> int:
    """Return how many bytes may be built out of a file of `size` bytes: once as bytes, as storage and as tensor."""
    return 4 * size + 2**20


class BoundedReader:
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


_PyUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(_PyUnpickler):
    """Python's unpickler: unlike the one in C its memo grows by use only, and its instructions can be overridden."""

    # BYTEARRAY8 allocates before it reads, so it is read as bytes.
    dispatch: dict[int, Any] = {**_PyUnpickler.dispatch, pickle.BYTEARRAY8[0]: _PyUnpickler.load_binbytes8}

    def __init__(self, file: BoundedReader, size: int, allowed: dict[str, Any]) -> None:
        super().__init__(file, fix_imports=False, encoding="latin1")
        self._left = allowance(size)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") in UNUSABLE:
            raise Refused(UNUSABLE[full])
        if full not in self._allowed:
            raise Refused(show(full)[1:-1])
        return self._allowed[full]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference to an object outside the file (persistent id)")

    def count(self, value: Any) -> None:
        self._left -= weight_of(value)
        if self._left < 0:
            raise Refused("the same data over and over, far more than the file's size")

    def load_reduce(self) -> None:
        arguments, constructor = self.stack.pop(), self.stack[-1]
        if not isinstance(constructor, Constructor) or not isinstance(arguments, tuple):
            raise Refused(f"a call of something that is no known constructor ({type(constructor).__name__})")
        try:
            self.stack[-1] = constructor.build(*arguments)
        except TypeError:  # not the arguments of a pickle of weights
            raise Refused(f"an unusual call of {constructor.name}") from None
        self.count(self.stack[-1])

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, DType):
            target.set_state(state)
        elif isinstance(target, np.ndarray) and isinstance(state, tuple) and len(state) in (4, 5):
            shape, dtype, fortran, raw = state[-4:]  # NumPy 1.0 wrote no version before these
            array = array_of(raw, dtype, shape, "F" if fortran else "C")
            self.count(array)
            target.__setstate__((1, array.shape, array.dtype, False, array.tobytes()))  # type: ignore[arg-type]
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            # torch attaches module versions to a state dict in this way; other attributes are not needed.
            target._metadata = state.get("_metadata")  # type: ignore[attr-defined]
        else:
            raise Refused(f"state for an object of type {type(target).__name__.strip('_')}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        check_items(self.stack[-3], self.stack[-2:-1])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        check_items(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        check_items({}, self.stack[::2])
        super().load_dict()

    dispatch[pickle.DICT[0]] = load_dict


def _refuse(instruction: str) -> Callable[[Any], None]:
    def refuse(unpickler: Any) -> None:
        raise Refused(f"the pickle instruction {instruction}, which no array needs")

    return refuse


# Other ways to make objects than REDUCE, registries and buffers outside the file, sets.
_REFUSED = "INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER EMPTY_SET FROZENSET"
Unpickler.dispatch.update({getattr(pickle, name)[0]: _refuse(name) for name in _REFUSED.split()})


class _StorageUnpickler(Unpickler):
    """Unpickler for torch's old format, in which a storage is a persistent id with its type."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _measure(value: Any, limit: int, known: dict[int, tuple[int, int]], depth: int = 0) -> tuple[int, int]:
    """Return size and height of a value as a tree, with every shared reference expanded.

    Each container is visited once: `known` holds those that were visited, by identity.
    """
    if isinstance(value, Constructor):
        raise Refused(f"{value.name} as a value")
    if value is None or isinstance(value, _PLAIN):
        return weight_of(value), 0
    if not isinstance(value, (dict, list, tuple)):
        raise Refused(f"a bare {type(value).__name__.strip('_').lower()}")
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
            raise Refused(f"containers in containers, more than {_MAX_DEPTH} deep")
        if size > limit:
            raise Refused("the same data over and over, far more than the file's size")
        known[id(value)] = size, height + 1
    return known[id(value)]


def _storage(raw: Any) -> Storage:
    """Read one storage in torch's old format.

    It consists of five pickles (magic number, version, machine, storage, keys), the number of elements (int64) and the
    elements.
    """
    if not isinstance(raw, bytes):
        raise Refused("a storage that is not bytes")
    file = BoundedReader(io.BytesIO(raw), len(raw))
    magic, _, _, storage, _ = (_StorageUnpickler(file, len(raw), STORAGES).load() for _ in range(5))
    if type(magic) is not int or magic != TORCH_MAGIC:
        raise Refused("a storage in an unknown format")
    if not isinstance(storage, tuple) or len(storage) < 2 or not isinstance(storage[1], torch.dtype):
        raise Refused("a storage without a plain type")
    (count,) = struct.unpack("<q", file.read(8))
    data = bytearray(file.read(count * storage[1].itemsize))
    memory = torch.frombuffer(data, dtype=storage[1]) if data else torch.empty(0, dtype=storage[1])
    return Storage(memory, len(raw))


_LOAD_FROM_BYTES = "torch.storage._load_from_bytes"
_NAMES = {**CONSTRUCTORS, _LOAD_FROM_BYTES: Constructor(_LOAD_FROM_BYTES, _storage)}
