"""SIGTERM and SIGINT: a training saves before it ends, its data workers outlive them, a launcher passes them on."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from detectron2.utils import comm
from torch.utils.data import DataLoader

from .rank_group import end_workers

_STOPS = (signal.SIGTERM, signal.SIGINT)
_SAME_STOP = 2.0  # seconds
_STOPPING = (
    "the training is saved at the next line of progress, or between two batches of an evaluation; another signal ends "
    "at once, without saving"
)
_WORKER_GRACE = 0.5  # seconds that daemonic children have at the end of the program


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


class StopRequested(Exception):
    """A signal asks the ranks to stop, and all of them know it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignal:
    """Remembers a SIGTERM or SIGINT instead of dying from it; one that comes later acts at once.

    Signals within two seconds are one stop: a batch system signals every process, and a launcher passes on
    what it got itself.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that came, 0 for none
        self._since = 0.0

    def agreed(self) -> int:
        """Return the number of a signal that any rank got, or 0; all ranks call this together."""
        return int(max(comm.all_gather(self.number)))

    def raise_if_agreed(self) -> None:
        """Raise StopRequested on all ranks if any of them got a signal; all ranks call this together."""
        if number := self.agreed():
            raise StopRequested(number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the context."""

        def remember(number: int, frame: FrameType | None) -> None:
            if not self.number:
                self.number, self._since = number, time.monotonic()
                if comm.get_rank() == 0:
                    # Not by logging, whose lock the interrupted code may hold.
                    os.write(2, f"\n{signal.Signals(number).name}: {_STOPPING}\n".encode())
            elif time.monotonic() - self._since > _SAME_STOP:
                put_back()
                signal.raise_signal(number)

        _LISTENING.append(self)
        try:
            with _handled_by(remember) as put_back:
                yield
        finally:
            _LISTENING.remove(self)


_LISTENING: list[StopSignal] = []


def current_stop_signal() -> StopSignal | None:
    """Return the signal that the training around this call listens for; None outside of trainings."""
    return _LISTENING[-1] if _LISTENING else None


def keep_workers(loader: Any) -> Any:
    """Let the workers of a DataLoader live through a signal to the whole job, until their rank has saved.

    They end when the loader's iterator or the rank is gone. A loader with a `worker_init_fn` is left as it is.
    """
    if isinstance(loader, DataLoader) and loader.worker_init_fn is None:
        loader.worker_init_fn = _ignore_stop_signals
        # At its end Python asks workers by SIGTERM to end, and waits for them.
        atexit.unregister(end_workers)
        atexit.register(end_workers, _WORKER_GRACE)
    return loader


def _ignore_stop_signals(worker_id: int) -> None:
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


class TrainingInterrupted(SystemExit):
    """Training ended early on a signal, on all ranks and after its state was saved.

    The exit status is 128 + signal number.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
