"""Files that are no weights, or weights under another suffix, are told by their content."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from mask2former.checkpoint import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, load_weights

STATE = {"backbone.w": torch.arange(3.0)}
NO_WEIGHTS = [
    (b"", "empty"),
    (bytes(5000), "zeros"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
    (b"\xef\xbb\xbf\n<!DOCTYPE html><html>Sign in</html>", r"web page \(HTML\)"),
    (b"<!-- login --><html>", "web page"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", r"\(XML\).*AccessDenied"),
    (b'{"message": "Not Found"}', "JSON.*Not Found"),
    (gzip.compress(b"x" * 100, mtime=0), "gzip"),
]


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize(("content", "hint"), NO_WEIGHTS)
def test_what_is_no_weights_is_said_for_every_suffix(tmp_path: Path, suffix: str, content: bytes, hint: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=rf"(?s)a\{suffix}: .*{hint}"):
        load_weights(file)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_the_content_decides_not_the_suffix(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(save(STATE))
    assert torch.equal(load_weights(file)["backbone.w"], STATE["backbone.w"])
    torch.save(STATE, file)
    assert torch.equal(load_weights(file)["backbone.w"], STATE["backbone.w"])


@pytest.mark.parametrize(("length", "beginning"), [(60, b"<"), (0x088B1F, b"\x1f\x8b\x08"), (0x7B, b"{")])
def test_the_length_of_a_header_is_not_taken_for_text(tmp_path: Path, length: int, beginning: bytes) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    # 60 bytes are too few for this header.
    header = header if len(header) == length else b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(60)
    body = bytes(4 if length > 60 else 1)
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + body)
    assert file.read_bytes().startswith(beginning)
    assert list(load_weights(file)) == ["a"]


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(None), pickle.dumps({}), pickle.dumps({"model": {}, "__author__": "x"}), pickle.dumps({"blobs": 5})]
    + [pickle.dumps({"model": 5, "__author__": "x"}), pickle.dumps([1])],
)
def test_pickles_without_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"a\.pkl"):
        load_weights(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": null, "b": "x"}}', "[" * 9999]
    + ['{"weight_map": {}}', "null", "not JSON"],
)
def test_index_of_wrong_types(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptCheckpointError, match=r"index\.json"):
        load_weights(tmp_path)


def test_index_names_files_beside_it_which_have_the_weights(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../a.safetensors", "..", "/etc/passwd", "a\\b"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(UnsafeCheckpointError, match="another directory"):
            load_weights(index)
    (tmp_path / "a.safetensors").write_bytes(save({"w": torch.ones(2)}))
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "a.safetensors"}}))
    with pytest.raises(CorruptCheckpointError, match="1 weights that its files do not have, for example v"):
        load_weights(index)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("tensor", "word"),
    [(torch.ones(2).to_sparse(), "sparse"), (torch.ones(2) * 1j, "complex")],
    ids=["sparse", "complex"],
)
def test_tensors_without_plain_values_are_named(tmp_path: Path, tensor: Tensor, word: str, zipped: bool) -> None:
    torch.save({"model": {"w": tensor}}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"a\.pth.*{word}"):
        load_weights(tmp_path / "a.pth")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="the system has no such device")
def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pth")
    for file in ("/dev/zero", tmp_path / "model.pth"):
        with pytest.raises(CheckpointError, match="is a pipe or device"):
            load_weights(file)
