"""Tests of JSON files: numbers, NaN, and what a failed write leaves."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.utils.atomic_file import atomic_write, check_writable, remove_abandoned
from mask2former.utils.file_io import write_bytes, write_json


def test_scalars_become_numbers_with_either_rule_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    document = {"a": np.float32(1.5), "b": (np.int64(2), True, None), "c": {"d": torch.tensor(3), "e": np.bool_(False)}}
    expected = {"a": 1.5, "b": [2, True, None], "c": {"d": 3, "e": False}}
    assert write_json(path, document) == path
    assert path.read_text() == json.dumps(expected)
    write_json(path, document, nan="null", indent=1)
    assert path.read_text() == json.dumps(expected, indent=1) + "\n"


@pytest.mark.parametrize(
    "value", [float("nan"), -float("inf"), np.float32("nan"), np.float64("inf"), torch.tensor(torch.inf)]
)
def test_nan_is_refused_or_null(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": [value]})
    assert not list(tmp_path.iterdir())
    write_json(path, {"a": [value]}, nan="null")
    assert json.loads(path.read_text()) == {"a": [None]}


@pytest.mark.parametrize("nan", ["error", "null"])
@pytest.mark.parametrize("value", [object(), np.zeros(2), torch.zeros(2)])
def test_failed_write_keeps_the_old_file(tmp_path: Path, value: Any, nan: Any) -> None:
    path = write_json(tmp_path / "metrics.json", [1])
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json(path, {"a": value}, nan=nan)
    assert path.read_text() == "[1]" and len(list(tmp_path.iterdir())) == 1


def test_temporary_files_of_dead_writers_are_removed_and_of_living_ones_stay(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    dead, foreign = tmp_path / ".model_0000001.pth.ab_12xyz.tmp", tmp_path / ".notes.txt.ab_12xyz.tmp"
    others = [foreign, tmp_path / ".model_0000001.pth.tmp", tmp_path / "model.pth.ab_12xyz.tmp"]
    for file in (dead, *others):
        file.write_bytes(b"half")
    (tmp_path / ".a.pth.ab_12xyz.tmp").mkdir()
    (tmp_path / ".b.pth.ab_12xyz.tmp").symlink_to(foreign)
    with atomic_write(tmp_path / "model_0000002.pth") as stream:
        stream.write(b"complete")
        assert remove_abandoned(tmp_path, re.compile(r".+\.pth")) == [dead]
    assert (tmp_path / "model_0000002.pth").read_bytes() == b"complete"
    assert all(file.is_file() for file in others) and len(list(tmp_path.iterdir())) == 6
    assert remove_abandoned(tmp_path / "absent", re.compile(".*")) == []


@pytest.mark.parametrize("name", ["file", "file/out", "n" * 300, "new/" + "n" * 300])
@pytest.mark.parametrize("directory", [True, False])
def test_outputs_that_cannot_be_written(tmp_path: Path, name: str, directory: bool) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / name / "x.png" if not directory and name.startswith("file") else tmp_path / name
    with pytest.raises(OSError, match="; choose another --output: '") as told:
        check_writable(path, "--output", directory=directory)
    assert str(path) in str(told.value)
    check_writable(tmp_path / "new" / "deep", "--output", directory=True)
    assert not (tmp_path / "new" / "deep").exists()


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    """Also where torch.save hides the system's error, as it does."""
    target = tmp_path / "model.pth"
    for wrapped in (False, True):
        with pytest.raises(OSError, match="No space left on device: '.*model.pth'"), atomic_write(target):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                if wrapped:
                    raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904
                raise
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_the_longest_length_is_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("n" * 251 + ".bin")) as file:
        file.write(b"1")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


@pytest.mark.parametrize("durable", [True, False])
def test_only_durable_writes_wait_for_the_disk(durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", waits.append)
    write_bytes(tmp_path / "x", b"content", durable=durable)
    assert (tmp_path / "x").read_bytes() == b"content" and bool(waits) == durable
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
