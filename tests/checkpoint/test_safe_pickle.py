"""The restricted unpickler: what a checkpoint may hold comes through, everything else is refused by name."""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mask2former.checkpoint.safe_pickle import load_pickle, load_pickle_bytes
from mask2former.errors import CorruptCheckpointError, UnsafeCheckpointError


class Call:
    """Pickles as `function(*args)`."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def call(module: str, name: str, *args: Any) -> bytes:
    """Protocol-2 pickle of `module.name(*args)`, for names that need not exist here."""
    body = pickle.dumps(args, protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_detectron2_checkpoint_comes_through(tmp_path: Path, protocol: int) -> None:
    weights = collections.OrderedDict(
        matrix=np.arange(6, dtype=np.float32).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        big_endian=np.arange(3, dtype=">i4"),
        half=np.arange(3, dtype=np.float16),
        flags=np.array([True, False]),
        empty=np.zeros((0, 4), dtype=np.float32),
        scalar=np.float32(2.5),
        tensor=torch.arange(6).reshape(2, 3).t(),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    data = {
        "model": weights,
        "__author__": "me",
        "matching_heuristics": True,
        "n": [1, 2.5, (None, b"\xff\x00")],
    }
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(data, protocol=protocol))
    loaded = load_pickle(file)
    assert {key: loaded[key] for key in ("__author__", "matching_heuristics", "n")} == {
        key: data[key] for key in ("__author__", "matching_heuristics", "n")
    }
    assert list(loaded["model"]) == list(weights)
    for key, value in weights.items():
        found = loaded["model"][key]
        if isinstance(value, torch.Tensor):
            assert torch.equal(found, value)
        else:
            assert found.dtype == np.asarray(value).dtype.newbyteorder("=")
            np.testing.assert_array_equal(found, value)
    loaded["model"]["matrix"][0, 0] = 7  # an own, writable array


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_both_numpy_spellings(module: str) -> None:
    data = pickle.dumps(np.arange(4.0), protocol=2).replace(b"numpy._core", b"numpy.core")
    data = data.replace(b"numpy.core", module.encode())
    np.testing.assert_array_equal(load_pickle_bytes(data), np.arange(4.0))


def test_python2_strings_are_latin1() -> None:
    # A protocol-2 pickle of Python 2: str is SHORT_BINSTRING, arrays carry their bytes in one.
    raw = struct.pack("<2f", 1.5, -2.0)
    data = (
        b"\x80\x02}U\x04name"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tbs."
    )
    np.testing.assert_array_equal(load_pickle_bytes(data)["name"], np.float32([1.5, -2.0]))
    assert load_pickle_bytes(b"\x80\x02U\x01\xe9.") == "\xe9"


@settings(max_examples=50, deadline=None)
@given(
    array=hnp.arrays(
        dtype=hnp.floating_dtypes() | hnp.integer_dtypes() | hnp.boolean_dtypes(),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ).filter(lambda a: a.dtype.itemsize <= 8),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_numeric_array_survives(array: np.ndarray, protocol: int) -> None:
    np.testing.assert_array_equal(
        load_pickle_bytes(pickle.dumps({"a": array}, protocol=protocol))["a"], array
    )


REFUSED = {
    "os.system": call("os", "system", "touch /tmp/owned"),
    "posix.system": call("posix", "system", "touch /tmp/owned"),
    "builtins.eval": call("builtins", "eval", "1 + 1"),
    "__builtin__.eval": call("__builtin__", "eval", "1 + 1"),
    "builtins.exec": call("builtins", "exec", "x = 1"),
    "builtins.getattr": call("builtins", "getattr", {}, "clear"),
    "builtins.__import__": call("builtins", "__import__", "os"),
    "operator.attrgetter": call("operator", "attrgetter", "system"),
    "subprocess.Popen": call("subprocess", "Popen", ["true"]),
    "numpy.load": call("numpy", "load", "x.npy", None, True),
    "numpy.core.multiarray.fromfile": call("numpy.core.multiarray", "fromfile", "/etc/passwd"),
    "numpy.testing._private.utils.runstring": call("numpy.testing._private.utils", "runstring", "1", {}),
    "torch.load": call("torch", "load", "x.pth"),
    "torch.hub.load": call("torch.hub", "load", "a/b", "c"),
    "copyreg._reconstructor": call("copyreg", "_reconstructor", "x", "y", None),
    "copy_reg._reconstructor": call("copy_reg", "_reconstructor", "x", "y", None),
    "_codecs.encode with codec 'rot13'": call("_codecs", "encode", "abc", "rot13"),
    "_codecs.encode with codec 'zlib'": call("_codecs", "encode", b"abc", "zlib"),
    "_codecs.decode": call("_codecs", "decode", b"abc", "latin1"),
    "an unusual call of _codecs.encode": call("_codecs", "encode", "abc"),
    "collections.OrderedDict.fromkeys": call("collections", "OrderedDict.fromkeys", "ab"),
    "bytearray with a size": call("builtins", "bytearray", 10**12),
    "an unusual call of bytes": call("builtins", "bytes", 10**12),
    "a direct call of a NumPy type": call("numpy", "ndarray", (10**9,)),
    "an array made in an unusual way": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    b"(J\xff\xff\xff\x7ftX\x01\x00\x00\x00b\x87R.",
    "an array of type 'O'": call("numpy", "dtype", "O"),
    "an array of type 'O8'": call("numpy", "dtype", "O8"),
    "an array of type 'f8,O'": call("numpy", "dtype", "f8,O"),
    "an array of type 'V16'": call("numpy", "dtype", "V16"),
    "numpy.ndarray as a value": b"\x80\x02cnumpy\nndarray\n.",
    "a bare dtype": call("numpy", "dtype", "f4"),
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "the pickle instruction INST": b"(S'x'\nios\nsystem\n.",
    "the pickle instruction OBJ": b"(cnumpy\ndtype\nS'f4'\no.",
    "the pickle instruction NEWOBJ": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "the pickle instruction EXT1": b"\x80\x02\x82\x01.",
    "a call of something that is no known constructor": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a tuple as dictionary key": pickle.dumps({(1, (2, 3)): 1}),
    "state for an object of type dict": b"\x80\x02}}b.",
    "state for an object of type Constructor": b"\x80\x02ccollections\nOrderedDict\n}b.",
}


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused_by_name(tmp_path: Path, what: str) -> None:
    file = tmp_path / "bad.pkl"
    file.write_bytes(REFUSED[what])
    with pytest.raises(UnsafeCheckpointError) as error:
        load_pickle(file)
    assert what in str(error.value)
    assert str(file) in str(error.value)


def test_real_objects_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    for value in (
        Call(open, str(marker), "w"),
        Call(eval, f"open({str(marker)!r}, 'w')"),
        {"model": [1, {"deep": (Call(marker.write_text, "x"),)}]},
        Call(pickle.loads, pickle.dumps(Call(open, str(marker), "w"))),
        np.array([{"an": "object"}, None], dtype=object),
        np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
        np.ma.masked_array([1.0]),
        np.zeros(2).view(np.recarray),
        tmp_path,
        collections.Counter("aab"),
        len,
    ):
        for protocol in (0, 2, 4, 5):
            with pytest.raises(UnsafeCheckpointError):
                load_pickle_bytes(pickle.dumps(value, protocol=protocol))
    assert not marker.exists()


def test_list_behind_a_numeric_type_is_refused() -> None:
    listed = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    listed += b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R\x89](K\x01K\x02etb."
    with pytest.raises(UnsafeCheckpointError, match="array of Python objects"):
        load_pickle_bytes(listed)


def test_false_sizes_do_not_allocate() -> None:
    array = pickle.dumps(np.zeros(3, dtype=np.float32), protocol=2)
    big = array.replace(b"(K\x01K\x03\x85", b"(K\x01J\xff\xff\xff\x7f\x85")
    assert big != array
    tracemalloc.start()
    try:
        for data in (
            big,
            b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",  # BYTEARRAY8
            b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",  # BINBYTES8
            b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",  # BINUNICODE
            b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"(.",  # memo slot 2^32 - 1
        ):
            with pytest.raises(CorruptCheckpointError):
                load_pickle_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_same_data_many_times_is_refused() -> None:
    text = "x" * 100_000
    head = b"\x80\x02(c_codecs\nencode\nq\x00X" + struct.pack("<I", len(text)) + text.encode() + b"q\x01"
    head += b"X\x06\x00\x00\x00latin1q\x02\x86q\x03R"
    with pytest.raises(UnsafeCheckpointError, match="over and over"):
        load_pickle_bytes(head + b"h\x00h\x03R" * 1000 + b"t.")


def test_shared_references_are_walked_once() -> None:
    value: Any = [np.zeros(1)]
    for _ in range(60):
        value = [value, value]  # 2^60 paths, 61 lists
    loaded = load_pickle_bytes(pickle.dumps(value, protocol=4))
    assert loaded[0] is loaded[1]


def test_tensor_beyond_its_memory_is_refused() -> None:
    storage = torch.arange(4.0).untyped_storage()
    good = (
        torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True),
        0,
        (4,),
        (1,),
    )
    rebuild = torch._utils._rebuild_tensor_v2
    ending = (False, collections.OrderedDict())
    assert load_pickle_bytes(pickle.dumps(Call(rebuild, *good, *ending))).tolist() == [0, 1, 2, 3]
    for offset, size, stride in ((0, (5,), (1,)), (1, (4,), (1,)), (0, (10**12,), (0,)), (0, (2, 3), (3, 1))):
        with pytest.raises(CorruptCheckpointError):
            load_pickle_bytes(pickle.dumps(Call(rebuild, good[0], offset, size, stride, *ending)))
    with pytest.raises(UnsafeCheckpointError):
        load_pickle_bytes(pickle.dumps(Call(rebuild, good[0], -1, (1,), (1,), *ending)))


def test_code_inside_tensor_memory_is_refused() -> None:
    archive = io.BytesIO()
    torch.save(Call(eval, "1 + 1"), archive, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpointError):
        load_pickle_bytes(call("torch.storage", "_load_from_bytes", archive.getvalue()))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_corrupt(tmp_path: Path, keep: float) -> None:
    whole = pickle.dumps({"model": {"a": np.zeros((20, 20))}, "__author__": "me"}, protocol=2)
    file = tmp_path / "cut.pkl"
    file.write_bytes(whole[: math.floor(keep * len(whole))])
    with pytest.raises(CorruptCheckpointError, match=r"cut\.pkl"):
        load_pickle(file)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_escapes(data: bytes) -> None:
    try:
        load_pickle_bytes(data, "garbage")
    except (CorruptCheckpointError, UnsafeCheckpointError) as error:
        assert "garbage" in str(error)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pkl"):
        load_pickle("nowhere.pkl")
