"""Read the files of `torch.save` without running what is inside them, in memory bounded by their size.

Both formats are read: zip archives (torch >= 1.6), whose entries are a pickle and the memory of each storage, and the
older sequence of pickles and memory. Pickles go through `safe_pickle`, whose bound holds here too: 4 N + 1 MiB of
tensors for a file of N bytes, archives with compressed entries included. Unlike `torch.load`, which skips them, the
checksums (CRC-32) of an archive are compared, so that damaged weights are noticed.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CorruptCheckpointError
from .constructors import TORCH_NAMES, Refused, Storage
from .safe_pickle import TORCH_MAGIC, BoundedReader, Unpickler, allowance, check_result, told_with

ZIP_MAGIC = b"PK\x03\x04"
_CHUNK = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others allocate as much as their headers say


def load_torch(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a file of `torch.save`: containers, text, numbers and tensors in main memory.

    Tensors that shared memory when they were saved share it again.

    Raises:
        UnsafeCheckpointError: the file contains anything else; the message names it.
        CorruptCheckpointError: the file is truncated, damaged, or none of `torch.save`.
    """
    path = Path(path)
    with path.open("rb") as file, told_with(str(path)):
        size = path.stat().st_size
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        file.seek(0)
        result = _read_zip(file, size, str(path)) if zipped else _read_old(file, size)
        check_result(result, size)
        return result


class _TorchUnpickler(Unpickler):
    """Unpickler for torch's files, in which a storage is a persistent id: its type, key, device and length."""

    def __init__(self, file: BoundedReader, size: int) -> None:
        super().__init__(file, size, TORCH_NAMES)
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise Refused("a reference to something that is no tensor memory (persistent id)")
        _, dtype, key, _, length = pid[:5]
        if not isinstance(key, (str, int)) or type(length) is not int or length < 0:
            raise Refused("an unusual reference to tensor memory (persistent id)")
        if (key := str(key)) not in self.storages:
            memory = self.read_storage(key, length * dtype.itemsize)
            self.storages[key] = Storage(memory.view(dtype), len(memory))
        storage = self.storages[key]
        if storage.memory.dtype != dtype or len(storage.memory) < length:
            raise EOFError(f"storage {key} is used with two types or lengths")
        return self.part(storage, pid[5] if len(pid) > 5 else None)

    def part(self, storage: Storage, view: Any) -> Storage:
        """Return the part of a storage that old files describe as (key, offset, length)."""
        if view is None:
            return storage
        _, offset, length = view
        if type(offset) is not int or type(length) is not int or not 0 <= offset <= offset + length:
            raise Refused("an unusual part of tensor memory")
        if offset + length > len(storage.memory):
            raise EOFError("a part of tensor memory is longer than all of it")
        return Storage(storage.memory[offset : offset + length], 0)

    def read_storage(self, key: str, nbytes: int) -> Tensor:
        """Return the memory of a storage, uint8 (nbytes,)."""
        raise NotImplementedError


class _Archive:
    """The entries of a zip archive of `torch.save`, whose checksums are compared as they are read."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._left = allowance(size)
        entries = archive.infolist()
        self._root = entries[0].filename.partition("/")[0] if entries else ""
        if not any(entry.CRC for entry in entries):  # saved without checksums (set_crc32_options)
            for entry in entries:
                entry.CRC = None  # type: ignore[assignment]

    def __contains__(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._archive.NameToInfo

    def read(self, name: str) -> Tensor:
        """Return an entry, uint8 (length,)."""
        if name not in self:
            raise EOFError(f"the archive has no entry {name}")
        info = self._archive.getinfo(f"{self._root}/{name}")
        if info.compress_type not in _METHODS:
            raise Refused(f"entries compressed with method {info.compress_type}")
        self._left -= info.file_size
        if self._left < 0:
            raise Refused("far more data than the file's size (compressed, or the same data over and over)")
        memory = torch.empty(info.file_size, dtype=torch.uint8)
        view, place = memory.numpy().data, 0
        with self._archive.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                view[place : place + len(chunk)] = chunk
                place += len(chunk)
        if place != info.file_size:
            raise EOFError(f"entry {name} is truncated after {place} of {info.file_size} bytes")
        return memory

    def bytes_of(self, name: str) -> bytes:
        return self.read(name).numpy().tobytes()


class _ZipUnpickler(_TorchUnpickler):
    """Unpickler for an archive; each storage is an entry."""

    def __init__(self, archive: _Archive, size: int) -> None:
        pickled = archive.bytes_of("data.pkl")
        super().__init__(BoundedReader(io.BytesIO(pickled), len(pickled)), size)
        self._archive = archive

    def read_storage(self, key: str, nbytes: int) -> Tensor:
        memory = self._archive.read(f"data/{key}")
        if len(memory) != nbytes:
            raise EOFError(f"storage {key} has {len(memory)} bytes instead of {nbytes}")
        return memory


def _read_zip(file: IO[bytes], size: int, name: str) -> Any:
    try:
        with zipfile.ZipFile(file) as opened:
            archive = _Archive(opened, size)
            if "constants.pkl" in archive:
                raise Refused("a TorchScript program")
            if "data.pkl" not in archive:
                raise CorruptCheckpointError(f"{name}: this is a zip archive, but not one of torch.save")
            if "byteorder" in archive and archive.bytes_of("byteorder") != sys.byteorder.encode():
                raise CorruptCheckpointError(
                    f"{name}: saved on a machine of another byte order; save it as .safetensors"
                )
            return _ZipUnpickler(archive, size).load()
    except zipfile.BadZipFile as error:
        if "Bad CRC-32" in str(error):
            raise CorruptCheckpointError(
                f"{name}: the file is damaged: {str(error).removeprefix('Bad CRC-32 for file ')} differs from its "
                "checksum. Download, copy or save it again."
            ) from error
        raise CorruptCheckpointError(
            f"{name}: the file is truncated or damaged after {size} bytes ({error}); download or save it again"
        ) from error


class _OldUnpickler(_TorchUnpickler):
    """Unpickler for the older format; the memory of the storages follows after the pickles."""

    def __init__(self, file: BoundedReader, size: int) -> None:
        super().__init__(file, size)
        self._reserved = size

    def read_storage(self, key: str, nbytes: int) -> Tensor:
        self._reserved -= nbytes
        if self._reserved < 0:
            raise EOFError(f"storage {key} is longer than the file")
        return torch.zeros(nbytes, dtype=torch.uint8)


def _read_old(file: IO[bytes], size: int) -> Any:
    """Read magic number, version, machine, content and keys, five pickles, then length and memory of each storage."""
    reader = BoundedReader(file, size)
    magic = _OldUnpickler(reader, size).load()
    if type(magic) is not int or magic != TORCH_MAGIC:
        raise pickle.UnpicklingError("the file does not begin as those of torch.save")
    _, machine = (_OldUnpickler(reader, size).load() for _ in range(2))
    if isinstance(machine, dict) and machine.get("little_endian", True) is not (sys.byteorder == "little"):
        raise EOFError("saved on a machine of another byte order")
    unpickler = _OldUnpickler(reader, size)
    content, keys = unpickler.load(), _OldUnpickler(reader, size).load()
    if not isinstance(keys, list) or {str(key) for key in keys} != set(unpickler.storages):
        raise EOFError("the list of storages is not complete")
    for key in map(str, keys):
        memory = unpickler.storages[key].memory
        (length,) = struct.unpack("<q", reader.read(8))
        if length != len(memory):
            raise EOFError(f"storage {key} has {length} elements instead of {len(memory)}")
        view = memory.view(torch.uint8).numpy().data
        for place in range(0, len(view), _CHUNK):
            part = view[place : place + _CHUNK]
            part[:] = reader.read(len(part))
    return content
