"""SIGTERM and SIGINT: what a batch system, `kill` and Ctrl-C send to a job that shall save and end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_STOPS = (signal.SIGTERM, signal.SIGINT)
_SAME_STOP = 2.0  # seconds


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[Callable[[], None]]:
    """Handle both signals by `handler` inside the context; yields a function that ends this early.

    Python can do so in the main thread only; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    # None stands for a handler that was not set from Python and cannot be put back.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _STOPS}

    def put_back() -> None:
        for number, former in before.items():
            signal.signal(number, former)

    for number in _STOPS:
        signal.signal(number, handler)
    try:
        yield put_back
    finally:
        put_back()


class StopSignal:
    """Remembers a SIGTERM or SIGINT instead of dying from it; one that comes later acts at once.

    Signals within two seconds are one stop: a batch system signals every process, and a launcher passes on
    what it got itself.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that came, 0 for none
        self._since = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the context."""

        def remember(number: int, frame: FrameType | None) -> None:
            if not self.number:
                self.number, self._since = number, time.monotonic()
            elif time.monotonic() - self._since > _SAME_STOP:
                put_back()
                signal.raise_signal(number)

        with _handled_by(remember) as put_back:
            yield


def ignore_stop_signals(worker_id: int) -> None:
    """For a loader's `worker_init_fn`: a signal to the whole job must not take the data away before the main
    process has saved. Workers end when the loader is closed or the main process is gone."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def passed_on_to_children() -> Iterator[list[int]]:
    """Pass the signals on to child processes and live on to wait for them; yields the list of those received.

    Otherwise a launcher would end before its children have saved, or wait for children that know nothing.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    with _handled_by(pass_on):
        yield received
