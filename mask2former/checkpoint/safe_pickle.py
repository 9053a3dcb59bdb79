"""Reads detectron2's `.pkl` checkpoints without running what is inside them.

A pickle is a small program, and unpickling an untrusted one is running untrusted code. Checkpoints need
little of that language: containers, text, numbers, NumPy arrays (and tensors, which the reference's
converters of Swin and torchvision weights leave in theirs). Everything else is refused by name. Three walls:

1. only the opcodes that such files contain are understood;
2. no global is ever looked up: the few permitted names stand for constructors written here, which check
   their arguments, so there is no object to take attributes from or to call with surprising values;
3. NumPy's own `__setstate__` is never called on data from the file: sizes are compared with the bytes that
   are really there, and arrays of Python objects are refused.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor
from torch.storage import TypedStorage

from ..errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from .pickle_types import CONSTRUCTORS, ArrayStub, Constructor, DTypeStub, Refused, plain_key


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Contents of a pickle file made of containers, text, numbers, arrays and tensors only.

    Byte strings of Python 2 are decoded as latin1, as detectron2 does.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: the file needs anything else; the message names what.
        CorruptCheckpointError: the file is cut short or is not a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    with path.open("rb") as file:
        return _load(file, path.stat().st_size, str(path))


def load_pickle_bytes(data: bytes, name: str = "<bytes>") -> Any:
    """Same as `load_pickle` for a pickle in memory; `name` is used in messages."""
    return _load(io.BytesIO(data), len(data), name)


def _load(file: IO[bytes], size: int, name: str) -> Any:
    try:
        return _finish(_CheckpointUnpickler(_BoundedReader(file, size), size).load(), {})
    except Refused as error:
        raise UnsafeCheckpointError(
            f"{name}: refused, because it contains {error}. A checkpoint may hold only arrays and plain "
            "containers. If you made this file yourself, save its state dict as .safetensors instead."
        ) from None
    except CheckpointError:
        raise
    # A damaged file can fail at any opcode, in as many ways as Python has to misread data.
    except Exception as error:
        raise CorruptCheckpointError(
            f"{name}: cut short or not a pickle ({type(error).__name__}: {error}). Download or save it again."
        ) from error


class _BoundedReader:
    """A file whose reads never ask for more than is left, so a false length cannot allocate memory."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, count: int) -> bytes:
        if count > self._left or count < 0:
            raise EOFError(f"{count} bytes announced, {self._left} left")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


# Everything that a pickle of plain data needs, and no more: no extension registry, no class
# instances (INST, OBJ, NEWOBJ), no out-of-band buffers.
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
    PERSID BINPERSID
"""


_PyUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _CheckpointUnpickler(_PyUnpickler):
    """The pure-Python unpickler (its memo cannot be made to allocate) with the three walls of this module."""

    def __init__(self, file: _BoundedReader, size: int) -> None:
        super().__init__(file, fix_imports=False, encoding="latin1")
        # Bytes that may be built in all. A file can name the same data many times and so grow without end;
        # honest files need their data once as bytes and once as array.
        self._budget = 4 * size + 2**20

    def find_class(self, module: str, name: str) -> Constructor:
        full = f"{module}.{name}"
        if full not in CONSTRUCTORS:
            raise Refused(full)
        return CONSTRUCTORS[full]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference to an object outside the file (persistent id)")

    def _reduce(self) -> None:
        args = self.stack.pop()
        build = self.stack[-1]
        if not isinstance(build, Constructor) or not isinstance(args, tuple):
            raise Refused(f"a call of something that is no known constructor ({type(build).__name__})")
        self.stack[-1] = self._pay(build(args))

    def _pay(self, value: Any) -> Any:
        inner = value.value if isinstance(value, ArrayStub) else value
        if isinstance(inner, (np.ndarray, Tensor)):
            self._budget -= inner.nbytes
        elif isinstance(inner, (bytes, bytearray)):
            self._budget -= len(inner)
        elif isinstance(inner, TypedStorage):
            self._budget -= inner._untyped_storage.nbytes()
        if self._budget < 0:
            raise Refused("the same data over and over, far more than the file's size")
        return value

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, (ArrayStub, DTypeStub)):
            target.set_state(state)
            self._pay(target)
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            # torch hangs module versions on a state dict in this way; other attributes are of no use here.
            target._metadata = state.get("_metadata")  # type: ignore[attr-defined]
        else:
            raise Refused(f"state for an object of type {type(target).__name__}")

    def _set_item(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._target(dict)[plain_key(key)] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        target = self._target(dict)
        for i in range(0, len(items), 2):
            target[plain_key(items[i])] = items[i + 1]

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({plain_key(items[i]): items[i + 1] for i in range(0, len(items), 2)})

    def _append(self) -> None:
        value = self.stack.pop()
        self._target(list).append(value)

    def _appends(self) -> None:
        values = self.pop_mark()
        self._target(list).extend(values)

    def _add_items(self) -> None:
        items = self.pop_mark()
        self._target(set).update(plain_key(item) for item in items)

    def _make_frozenset(self) -> None:
        self.append(frozenset(plain_key(item) for item in self.pop_mark()))

    def _make_bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))  # read first: the length may be a lie

    def _target(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise Refused(f"items for an object of type {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    @staticmethod
    def _refuse(opcode: int) -> Callable[[Any], None]:
        def refuse(self: Any) -> None:
            name = next(op.name for op in pickletools.opcodes if op.code == chr(opcode))
            raise Refused(f"the pickle instruction {name}, which no array needs")

        return refuse

    dispatch: dict[int, Callable[..., None]] = dict(_PyUnpickler.dispatch)


def _install_opcodes() -> None:
    cls = _CheckpointUnpickler
    allowed = {getattr(pickle, name)[0] for name in _OPCODES.split()}
    for opcode in cls.dispatch:
        if opcode not in allowed:
            cls.dispatch[opcode] = cls._refuse(opcode)
    for name, method in {
        "REDUCE": cls._reduce,
        "BUILD": cls._build,
        "SETITEM": cls._set_item,
        "SETITEMS": cls._set_items,
        "DICT": cls._make_dict,
        "APPEND": cls._append,
        "APPENDS": cls._appends,
        "ADDITEMS": cls._add_items,
        "FROZENSET": cls._make_frozenset,
        "BYTEARRAY8": cls._make_bytearray,
    }.items():
        cls.dispatch[getattr(pickle, name)[0]] = method


_install_opcodes()


_LEAVES = (str, bytes, bytearray, int, float, complex, Tensor, np.generic, set, frozenset)


def _finish(value: Any, done: dict[int, Any]) -> Any:
    """Replace the stand-ins by arrays, in every container once (files may refer to one object many times)."""
    if value is None or isinstance(value, _LEAVES):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, ArrayStub):
        if value.value is None:
            raise EOFError("an array without contents")
        result: Any = value.value
    elif isinstance(value, Mapping):
        result = done[id(value)] = type(value)()
        for key, item in value.items():
            result[key] = _finish(item, done)
        if getattr(value, "_metadata", None) is not None:
            result._metadata = _finish(value._metadata, done)  # type: ignore[attr-defined]
    elif isinstance(value, list):
        result = done[id(value)] = []
        result.extend(_finish(item, done) for item in value)
    elif isinstance(value, tuple):
        result = tuple(_finish(item, done) for item in value)
    elif isinstance(value, Constructor):
        raise Refused(f"{value.name} as a value")
    else:
        raise Refused(f"a bare {type(value).__name__.strip('_').lower()}")
    done[id(value)] = result
    return result
