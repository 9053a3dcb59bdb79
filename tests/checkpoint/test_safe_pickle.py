"""The restricted unpickler: what a checkpoint may hold comes through, everything else is refused by name."""

from __future__ import annotations

import collections
import contextlib
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


@settings(max_examples=50)
@given(
    array=hnp.arrays(
        dtype=hnp.floating_dtypes() | hnp.integer_dtypes() | hnp.boolean_dtypes(),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ).filter(lambda a: a.dtype.itemsize <= 8),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_numeric_array_survives(array: np.ndarray, protocol: int) -> None:
    np.testing.assert_array_equal(load_pickle_bytes(pickle.dumps({"a": array}, protocol=protocol))["a"], array)


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
    "builtins.bytearray": call("builtins", "bytearray", 10**12),
    "an unusual call of builtins.bytes": call("builtins", "bytes", 10**12),
    "an unusual call of numpy.ndarray": call("numpy", "ndarray", (10**9,)),
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
    "the pickle instruction EMPTY_SET": b"\x80\x04\x8f.",
    "an unusual call of collections.OrderedDict": call("collections", "OrderedDict", "ab"),
    "an unusual call of torch._utils._rebuild_tensor_v2": call("torch._utils", "_rebuild_tensor_v2"),
    "an unusual tensor": call("torch._utils", "_rebuild_tensor_v2", 1, 0, (), ()),
    "an array of Python objects": call("numpy.core.multiarray", "scalar", DTYPE := Call(np.dtype, "f8"), [1.0]),
    "an array with an unusual shape": call("numpy.core.numeric", "_frombuffer", b"", DTYPE, (1,) * 65, "C"),
    "a call of something that is no known constructor": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a tuple as dictionary key": pickle.dumps({(1, (2, 3)): 1}),
    "a list as dictionary key": b"\x80\x02(]Nd.",
    "a storage in an unknown format": call("torch.storage", "_load_from_bytes", b"K\x01." * 5),
    "state for an object of type dict": b"\x80\x02}}b.",
    "state for an object of type Constructor": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "state for an object of type Tensor": pickle.dumps(torch.zeros(1), 2)[:-1] + b"]b.",
    "items for an object of type ndarray": pickle.dumps(np.zeros(1), 2)[:-1] + b"K\x00]s.",
    "items for an object of type list": b"\x80\x02](K\x00K\x01u.",
    "containers in containers": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "containers in containers, more than 50 deep": b"\x80\x02]q\x00h\x00a.",  # a list inside itself
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


def test_shared_references_stay_shared() -> None:
    array = np.zeros(1)
    loaded = load_pickle_bytes(pickle.dumps([array, array, [array]], protocol=4))
    assert loaded[0] is loaded[1] is loaded[2][0]


@pytest.mark.parametrize("kind", [list, tuple])
def test_references_that_print_as_far_more_than_the_file_are_refused(kind: type) -> None:
    value: Any = kind([1])
    for _ in range(40):
        value = kind([value, value])  # 2^40 leaves when printed or copied, in a file of 300 bytes
    for data in (value, {"model": {"a": np.zeros(1)}, "__author__": value}):
        with pytest.raises(UnsafeCheckpointError, match="over and over"):
            load_pickle_bytes(pickle.dumps(data, protocol=4))
    text = "x" * 100_000
    with pytest.raises(UnsafeCheckpointError, match="over and over"):
        load_pickle_bytes(pickle.dumps([text] * 100, protocol=4))
    head, key = pickle.dumps(value, protocol=4)[:-1], b"}"  # as key: its hash would take for ever
    with pytest.raises(UnsafeCheckpointError, match="as dictionary key"):
        load_pickle_bytes(head[:2] + key + head[11:] + b"Ns.")


@pytest.mark.parametrize(
    ("module", "name"), [("numpy", "dtype"), ("_codecs", "encode"), ("numpy.core.multiarray", "scalar")]
)
def test_messages_do_not_print_what_the_file_repeats(module: str, name: str) -> None:
    value: Any = ()
    for _ in range(40):
        value = (value, value)
    for arguments in ((value,), (value, value), ("a", value), (Call(np.dtype, "f8"), value)):
        with pytest.raises((UnsafeCheckpointError, CorruptCheckpointError)) as error:
            load_pickle_bytes(call(module, name, *arguments))
        assert len(str(error.value)) < 1000
    with pytest.raises(UnsafeCheckpointError) as refused:
        load_pickle_bytes(call("os", "\x1b[2J" + "x" * 10_000))
    assert refused.value.args[0].isprintable()
    assert len(str(refused.value)) < 1000


def test_arguments_named_many_times_are_refused() -> None:
    """A dictionary of 3000 pairs, built again by every 5 bytes."""
    pairs = pickle.dumps([[i, None] for i in range(3000)], protocol=2)[2:-1]
    head = b"\x80\x02ccollections\nOrderedDict\nr\xff\xff\xff\x00" + pairs + b"\x85r\xfe\xff\xff\x00("
    again = b"j\xff\xff\xff\x00j\xfe\xff\xff\x00R"
    assert len(load_pickle_bytes(head + again + b"t.")[0]) == 3000
    with pytest.raises(UnsafeCheckpointError, match="over and over"):
        load_pickle_bytes(head + again * 100 + b"t.")


HUNGRY = {
    "dictionaries": (b"(", b"}", b"t."),
    "dictionaries with an item": (b"(", b"}NNs", b"t."),
    "lists with an item": (b"(", b"]Na", b"t."),
    "tuples in the memo": (b"(", b")\x85\x94", b"t."),
    "nested tuples": (b"N", b"\x85", b"."),
    "marks": (b"", b"(", b"."),
    "ordered dictionaries": (b"ccollections\nOrderedDict\nq\x00(", b"h\x00)R", b"t."),
    "arrays": (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nK\x00N\x87q\x01(",
        b"h\x00h\x01R",
        b"t.",
    ),
    "wide text": (b"VX", b"xxxx", b"\\U0001f600\n."),
}


@pytest.mark.parametrize("what", HUNGRY)
@pytest.mark.parametrize("size", [300, 40_000])
def test_memory_is_bounded_by_the_size_of_the_file(what: str, size: int) -> None:
    head, unit, tail = HUNGRY[what]
    data = b"\x80\x04" + head + unit * (size // len(unit)) + tail
    assert peak_of_loading(data) < 200 * len(data) + 2 * 2**20


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_memory_of_an_honest_file_is_a_few_times_its_size(protocol: int) -> None:
    data = pickle.dumps({"model": {"a": np.random.default_rng(0).random(2**18)}}, protocol=protocol)
    assert peak_of_loading(data) < 5 * len(data) + 2**20


def peak_of_loading(data: bytes) -> int:
    """Most bytes that Python and NumPy had allocated at once, beyond those from before."""
    tracemalloc.start()
    try:
        with contextlib.suppress(UnsafeCheckpointError, CorruptCheckpointError):
            load_pickle_bytes(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_tensor_memory_of_false_length_does_not_allocate() -> None:
    """torch's own loader allocates what the file announces before it compares."""
    archive = io.BytesIO()
    storage = torch.zeros(4).untyped_storage()
    torch.save(
        torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True),
        archive,
        _use_new_zipfile_serialization=False,
    )
    raw = archive.getvalue()
    count = struct.pack("<q", 4)
    for wrong in (5, 2**31, 2**62, -1):
        bad = raw[: raw.rindex(count)] + struct.pack("<q", wrong) + raw[raw.rindex(count) + 8 :]
        with pytest.raises(CorruptCheckpointError):
            load_pickle_bytes(call("torch.storage", "_load_from_bytes", bad))
    zipped = io.BytesIO()
    torch.save(torch.zeros(4), zipped)  # may be compressed, so it may be far larger than it looks
    with pytest.raises((UnsafeCheckpointError, CorruptCheckpointError)):
        load_pickle_bytes(call("torch.storage", "_load_from_bytes", zipped.getvalue()))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_tensors_of_every_type(dtype: torch.dtype) -> None:
    for tensor in (torch.ones(2, 3).to(dtype), torch.zeros(0, 3, dtype=dtype), torch.ones((), dtype=dtype)):
        found = load_pickle_bytes(pickle.dumps(tensor))
        assert found.dtype == dtype
        assert torch.equal(found, tensor)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_with_permuted_axes(protocol: int) -> None:
    array = np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0)
    found = load_pickle_bytes(pickle.dumps(array, protocol=protocol))
    np.testing.assert_array_equal(found, array)
    assert found.flags.c_contiguous


def test_a_state_does_not_change_numpy() -> None:
    """NumPy shares its dtypes, and its own `__setstate__` would change the shared one."""
    data = b"\x80\x02(cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x89\x87R(K\x03X\x01\x00\x00\x00>NNNK\xffK\xffK\x00tbt."
    with pytest.raises(UnsafeCheckpointError, match="bare dtype"):
        load_pickle_bytes(data)
    assert np.dtype("f4").isnative


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
    for offset, size, stride in (
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (10**12,), (0,)),
        (0, (8,), (0,)),
        (0, (2, 3), (3, 1)),
    ):
        with pytest.raises(CorruptCheckpointError):
            load_pickle_bytes(pickle.dumps(Call(rebuild, good[0], offset, size, stride, *ending)))
    with pytest.raises(UnsafeCheckpointError):
        load_pickle_bytes(pickle.dumps(Call(rebuild, good[0], -1, (1,), (1,), *ending)))


def test_code_inside_tensor_memory_is_refused() -> None:
    archive = io.BytesIO()
    torch.save(Call(eval, "1 + 1"), archive, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpointError):
        load_pickle_bytes(call("torch.storage", "_load_from_bytes", archive.getvalue()))


def test_tensor_memory_inside_tensor_memory_is_refused() -> None:
    """Each level would hold its own copy of the bytes."""
    raw = b"N."
    for _ in range(3):
        raw = call("torch.storage", "_load_from_bytes", raw)
    with pytest.raises(UnsafeCheckpointError, match="_load_from_bytes"):
        load_pickle_bytes(raw)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_corrupt(tmp_path: Path, keep: float) -> None:
    whole = pickle.dumps({"model": {"a": np.zeros((20, 20))}, "__author__": "me"}, protocol=2)
    file = tmp_path / "cut.pkl"
    file.write_bytes(whole[: math.floor(keep * len(whole))])
    with pytest.raises(CorruptCheckpointError, match=r"cut\.pkl"):
        load_pickle(file)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_garbage_never_escapes(data: bytes) -> None:
    try:
        load_pickle_bytes(data, "garbage")
    except (CorruptCheckpointError, UnsafeCheckpointError) as error:
        assert "garbage" in str(error)


# Made once: the bytes of a tensor hold an address of its memory, whose digits may be more or fewer the next time.
_HONEST = [
    pickle.dumps({"model": {"a": np.arange(3.0), "b": torch.ones(2)}, "__author__": "me"}, protocol=protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]


@settings(max_examples=200)
@given(st.data())
def test_changed_bytes_never_escape(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(_HONEST)))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptCheckpointError, UnsafeCheckpointError):
        load_pickle_bytes(bytes(changed))


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pkl"):
        load_pickle("nowhere.pkl")
