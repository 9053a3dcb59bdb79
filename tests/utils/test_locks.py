"""Locks between processes."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from mask2former.errors import InUseError
from mask2former.utils import locks
from mask2former.utils.locks import Lock

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="needs POSIX")


def hold(path: Path, pipe: Any) -> None:
    lock = Lock(path, "The output x")
    pipe.send(os.getpid())
    pipe.recv()
    lock.release()
    pipe.send("released")
    pipe.recv()


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """A process that holds the lock: (path, process, pipe)."""
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / ".lock", theirs), daemon=True)
    process.start()
    pipe.recv()
    yield tmp_path / ".lock", process, pipe
    process.kill()
    process.join()


def test_another_process_is_named(other: Any) -> None:
    path, process, pipe = other
    with pytest.raises(InUseError, match=f"The output x is in use by process {process.pid} on {socket.gethostname()}"):
        Lock(path, "The output x")
    pipe.send("release")
    assert pipe.recv() == "released" and not path.exists()
    with Lock(path, "it"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_killed_owner_is_replaced(other: Any) -> None:
    path, process, _ = other
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.exists()
    with Lock(path, "it"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_one_process_may_hold_it_twice(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    first, second = Lock(path, "it"), Lock(path, "it")
    first.release()
    first.release()
    assert path.exists()
    del second
    assert not path.exists()


def test_a_directory_that_was_deleted_can_be_locked_again(tmp_path: Path) -> None:
    first = Lock(tmp_path / ".lock", "it")
    first.path.unlink()
    with Lock(tmp_path / ".lock", "it"):
        first.release()
        assert first.path.exists()


@pytest.mark.parametrize("owner", [b"", b"\xff", b"[]", b'{"pid": "x"}', b'{"pid": 1, "host": "elsewhere"}'])
def test_file_system_without_locks(
    tmp_path: Path, owner: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    path = tmp_path / ".lock"
    path.write_bytes(owner)
    with caplog.at_level(logging.WARNING), Lock(path, "it"):
        assert "has no locks" in caplog.text
    path.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with pytest.raises(InUseError, match=f"process {os.getppid()} .*delete {path}"):
        Lock(path, "it")


def test_without_what_windows_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    for name in ("pread", "pwrite"):
        monkeypatch.delattr(os, name)
    with Lock(tmp_path / ".lock", "it") as lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    assert not lock.path.exists()
