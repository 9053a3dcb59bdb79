"""Files of `torch.save`: equal to what torch loads, bounded in memory, and damage is noticed."""

from __future__ import annotations

import collections
import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.checkpoint.torch_file import load_torch
from mask2former.errors import CorruptCheckpointError, UnsafeCheckpointError

X = torch.arange(12.0).reshape(3, 4)
CONTENT: dict[str, Any] = {
    "tensor": X,
    "view": X[:, 1:],
    "transposed": X.t(),
    "expanded": torch.ones(1).expand(7),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(3),
    "bfloat16": X.bfloat16(),
    "bool": X > 3,
    "parameter": nn.Parameter(X[0]),
    "numbers": [1, 2.5, True, None, 1 + 2j],
    "bytes": b"xyz",
    "set": {1, 2},
    "size": torch.Size([1, 2]),
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "milestones": collections.Counter([3, 3]),
    "ordered": collections.OrderedDict(a=1),
}


def equal(one: Any, two: Any) -> bool:
    if isinstance(two, Tensor):
        return one.dtype == two.dtype and one.stride() == two.stride() and torch.equal(one, two)
    return type(one) is type(two) and one == two


@pytest.mark.parametrize("zipped", [True, False])
def test_contents_are_those_that_torch_loads(tmp_path: Path, zipped: bool) -> None:
    torch.save(CONTENT, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    ours = load_torch(tmp_path / "a.pth")
    theirs = torch.load(tmp_path / "a.pth", weights_only=True)
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not equal(ours[key], theirs[key])] == []
    ours["tensor"][0, 1] = 5
    assert ours["view"][0, 0] == 5  # memory that was shared is shared


def test_attributes_of_tensors_and_types_without_storage_class(tmp_path: Path) -> None:
    parameter = nn.Parameter(X)
    parameter.decoder = True
    small = X.to(torch.float8_e4m3fn)
    torch.save({"a": parameter, "b": small}, tmp_path / "a.pth")
    loaded = load_torch(tmp_path / "a.pth")
    assert torch.equal(loaded["a"], X) and torch.equal(loaded["b"].float(), small.float())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_number_of_bytes_does_not_allocate_them(tmp_path: Path, zipped: bool) -> None:
    class Zeros:
        def __reduce__(self) -> Any:
            return bytearray, (2**31,)

    torch.save({"a": Zeros(), "b": X}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    tracemalloc.start()
    with pytest.raises(UnsafeCheckpointError, match=r"a\.pth.*bytearray"):
        load_torch(tmp_path / "a.pth")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def packed(tensor: Tensor, method: int) -> bytes:
    """A file of torch.save whose entries are compressed."""
    stored, out = io.BytesIO(), io.BytesIO()
    torch.save({"w": tensor}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(out, "w", method) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return out.getvalue()


def test_compressed_archives_are_read_up_to_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(packed(X, zipfile.ZIP_DEFLATED))
    assert torch.equal(load_torch(file)["w"], X)
    file.write_bytes(packed(torch.zeros(2**22), zipfile.ZIP_DEFLATED))
    assert file.stat().st_size < 2**15
    with pytest.raises(UnsafeCheckpointError, match="far more data"):
        load_torch(file)
    file.write_bytes(packed(X, zipfile.ZIP_LZMA))  # reserves the memory that its header asks for
    with pytest.raises(UnsafeCheckpointError, match="compressed"):
        load_torch(file)


def test_one_storage_under_many_names_is_counted(tmp_path: Path) -> None:
    torch.save([X.expand(1000, 3, 4) for _ in range(100)], tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match="over and over"):
        load_torch(tmp_path / "a.pth")


def test_every_changed_bit_of_the_weights_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": X}, file)
    good = file.read_bytes()
    start = good.index(X.numpy().tobytes())
    for position in range(start, start + 48, 5):
        file.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(CorruptCheckpointError, match=r"a\.pth: the file is damaged: .*checksum"):
            load_torch(file)


def test_archives_without_checksums_load(tmp_path: Path) -> None:
    set_crc32 = pytest.importorskip("torch.serialization").__dict__.get("set_crc32_options")
    if set_crc32 is None:
        pytest.skip("this torch always writes them")
    set_crc32(False)
    try:
        torch.save({"w": X}, tmp_path / "a.pth")
    finally:
        set_crc32(True)
    assert torch.equal(load_torch(tmp_path / "a.pth")["w"], X)


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (X.to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "quantized"),
    ],
)
def test_tensors_that_are_no_weights_are_named(tmp_path: Path, tensor: Tensor, word: str) -> None:
    torch.save({"w": tensor}, tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match=rf"a\.pth.*{word} tensor"):
        load_torch(tmp_path / "a.pth")


def test_lengths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": X}, file, _use_new_zipfile_serialization=False)
    good = file.read_bytes()
    count = (12).to_bytes(8, "little")
    assert good.count(count) == 1
    file.write_bytes(good.replace(count, (2**40).to_bytes(8, "little")))
    with pytest.raises(CorruptCheckpointError):
        load_torch(file)
    # The length in the pickle, of a storage that the file cannot hold.
    file.write_bytes(good.replace(b"K\x0cNt", b"J\xff\xff\xff\x7fNt"))
    assert file.read_bytes() != good
    with pytest.raises(CorruptCheckpointError, match="longer than the file"):
        load_torch(file)


def test_other_archives_and_pickles_are_no_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "text")
    with pytest.raises(CorruptCheckpointError, match="zip archive"):
        load_torch(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", b"}.")
        archive.writestr("m/constants.pkl", b").")
    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        load_torch(file)
    file.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CorruptCheckpointError, match="torch.save"):
        load_torch(file)
