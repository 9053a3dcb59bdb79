"""What a rank does when it or another one fails, in one process; `test_distributed.py` has real ranks."""

from __future__ import annotations

import io
import logging
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist

from mask2former.engine import rank_group
from mask2former.engine.rank_group import Place, RankGroup, announce_failure, failures_in


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def _end(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(status: int, exit_functions: bool = False) -> NoReturn:
        raise Ended(status)

    monkeypatch.setattr(rank_group, "end_process", end)
    monkeypatch.setattr(rank_group, "_LOOK", 0.001)
    monkeypatch.setattr(rank_group, "_FAREWELL", 1e6)


def member(store: dist.Store, rank: int) -> RankGroup:
    """A rank of two that has joined."""
    group = object.__new__(RankGroup)
    group.place = Place(rank, 2, rank, 2, "host", 1)
    group._store, group._left = store, threading.Event()
    return group


def test_the_first_failure_counts() -> None:
    store = dist.HashStore()
    assert announce_failure(store, 3, 2) == (3, 2)
    assert announce_failure(store, 0, 1) == (3, 2)


def test_a_rank_ends_quietly_when_another_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    store = dist.HashStore()
    announce_failure(store, 1, 7)
    store.set("told", "1")
    with pytest.raises(Ended, match="7"):
        member(store, 0)._watch()
    with pytest.raises(Ended, match="7"):  # its own error is one of the other's
        member(store, 0).fail(1, "connection lost")
    assert capsys.readouterr().err == ""


def test_the_rank_that_fails_speaks_and_goes_last(capsys: pytest.CaptureFixture[str]) -> None:
    store, ended = dist.HashStore(), []

    def other() -> None:
        with pytest.raises(Ended):
            member(store, 0)._watch()
        ended.append(0)

    thread = threading.Thread(target=other)
    thread.start()
    failing = member(store, 1)
    with pytest.raises(Ended, match="2"):
        failing.fail(2, "a mistake\n")
    assert store.add("ended", 0) == 1  # the other was seen to end
    thread.join()
    assert ended == [0]
    failing._watch()  # does not end its rank by itself: the message comes first
    assert capsys.readouterr().err == "a mistake\n"


def test_no_rank_ends_before_the_message_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun would end the rank that is about to write it."""
    store, order = dist.HashStore(), []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            order.append(text)
            # The other rank has long seen the failure, and looked for the message, before it is complete.
            assert looked.wait(60)
            order.append("written")
            return super().write(text)

    looked = threading.Event()

    class Store:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def check(self, keys: list[str]) -> bool:
            found = store.check(keys)
            if keys == ["told"]:
                looked.set()
            return found

    def other() -> None:
        with pytest.raises(Ended, match="2"):
            member(Store(), 0).fail(2, "the same mistake\n")
        order.append("ended")

    monkeypatch.setattr(sys, "stderr", Terminal())
    announce_failure(store, 1, 2)
    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(Ended, match="2"):
        member(store, 1).fail(2, "a mistake\n")
    thread.join()
    assert order == ["a mistake\n", "written", "ended"]


def test_a_killed_rank_tells_nothing_that_others_would_wait_for() -> None:
    store = dist.HashStore()
    announce_failure(store, -1, 137)
    with pytest.raises(Ended, match="137"):
        member(store, 0)._watch()


def test_a_rank_that_has_left_is_not_ended() -> None:
    store = dist.HashStore()
    group = member(store, 0)
    group._left.set()
    announce_failure(store, 1, 7)
    group._watch()


def test_the_next_start_knows_nothing_of_the_failure_before() -> None:
    store = dist.HashStore()
    announce_failure(failures_in(store, "first"), 1, 7)
    assert announce_failure(failures_in(store, "second"), 0, 2) == (0, 2)


class GoneStore:
    """A store whose process has ended."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        raise RuntimeError("connection reset")


def test_the_message_is_told_when_the_store_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Ended, match="1"):
        member(GoneStore(), 0).fail(1, "the reason\n")  # type: ignore[arg-type]
    assert capsys.readouterr().err == "the reason\n"


def test_a_group_that_main_has_destroyed_is_left_all_the_same() -> None:
    group = member(dist.HashStore(), 0)
    group._watcher = threading.Thread(target=group._watch)
    group._watcher.start()
    assert not dist.is_initialized()
    group.leave()
    assert not group._watcher.is_alive()


def test_log_files_tell_why_a_rank_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = dist.HashStore()
    announce_failure(store, 1, 7)
    store.set("told", "1")
    log = logging.getLogger("mask2former")
    with (tmp_path / "log.txt.rank0").open("w") as file:
        handlers = [logging.StreamHandler(file), logging.StreamHandler(sys.stdout)]
        for handler in handlers:
            log.addHandler(handler)
        try:
            with pytest.raises(Ended, match="7"):
                member(store, 0)._watch()
        finally:
            for handler in handlers:
                log.removeHandler(handler)
    assert (tmp_path / "log.txt.rank0").read_text() == "Rank 0 ends because rank 1 ended with status 7.\n"
    assert capsys.readouterr().out == ""


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 ranks were started here, but there are 1 GPUs"):
        member(dist.HashStore(), 0).use_device()
