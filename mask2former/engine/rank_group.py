"""The ranks of a job: where each stands, how it joins the process group, leaves it, and ends when another one fails."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..utils.console import PACKAGE

logger = logging.getLogger(__name__)

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FAILURE = "failure"  # key of "RANK STATUS" of the rank that failed first
_TOLD = "told"  # key that is set when that rank has written its message
_ENDED = "ended"  # key of the number of ranks that ended because of it
_LOOK = 0.2  # seconds between two looks at the store
_FAREWELL = 5.0  # seconds that ranks wait for each other at most, when one of them has failed


@dataclass(frozen=True)
class Place:
    """The place of this process among the ranks.

    Attributes:
        host, port: where the ranks meet, a `TCPStore`.
        served: whether the launcher serves this store; if not, torch decides who does, as `env://` says.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str
    port: int
    served: bool = False


def torchrun_place(environment: Mapping[str, str] | None = None) -> Place | None:
    """Read torchrun's variables; None if this process was started in another way.

    Raises:
        ValueError: LOCAL_RANK is set, but the others are incomplete or not consistent numbers.
    """
    environment = os.environ if environment is None else environment
    if "LOCAL_RANK" not in environment or "RANK" not in environment:
        return None
    missing = [name for name in _VARIABLES if name not in environment]
    if missing:
        raise ValueError(f"torchrun's variables are incomplete, {', '.join(missing)} not set. Start with torchrun.")
    try:
        rank, world, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        local_world = int(environment.get("LOCAL_WORLD_SIZE", world))
        port = int(environment["MASTER_PORT"])
    except ValueError as error:
        raise ValueError(
            f"torchrun's variables RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be numbers: {error}"
        ) from error
    if not (0 <= rank < world and 0 <= local < local_world <= world):
        raise ValueError(
            f"torchrun's variables do not fit: RANK {rank} of {world}, LOCAL_RANK {local} of {local_world}"
        )
    return Place(rank, world, local, local_world, environment["MASTER_ADDR"], port)


def announce_failure(store: dist.Store, rank: int, status: int) -> tuple[int, int]:
    """Tell all ranks to end with `status`; returns rank and status of the failure that was announced first."""
    first = store.compare_set(_FAILURE, "", f"{rank} {status}").decode().split()
    return int(first[0]), int(first[1])


def failures_in(store: dist.Store, start: str = "") -> dist.Store:
    """Return the part of a store where the failures of one start of the ranks are announced."""
    return dist.PrefixStore(f"mask2former/{start}", store)


class RankGroup:
    """This rank's membership in the process group, from joining to leaving.

    All ranks leave in order when they are done or stop together. When one fails, the others may wait for it in
    a collective operation without end. So the rank that fails says so in the store, where a thread of every
    rank looks; it ends its rank at once, without a word and with the same status.

    Raises:
        RuntimeError: the other ranks cannot be reached.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if place.served:
            dist.init_process_group(
                backend,
                store=_connect(place),
                rank=place.rank,
                world_size=place.world_size,
                timeout=DEFAULT_TIMEOUT,
            )
        else:
            dist.init_process_group(backend, init_method="env://", timeout=DEFAULT_TIMEOUT)
        comm.create_local_process_group(place.local_world_size)
        # Ranks that torchrun starts again find the failures of before in the store: each start has its own names there.
        start = "" if place.served else str(comm.all_gather(uuid.uuid4().hex)[0])
        # A connection of its own: that of the group serves one request at a time, which may wait for a failed rank.
        self._store = failures_in(_connect(place), start)
        self._left = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="failure-watcher", daemon=True)
        self._watcher.start()

    def use_device(self) -> None:
        """Make this rank's GPU the current one, if there are GPUs.

        Raises:
            ValueError: there are fewer GPUs than ranks on this machine.
        """
        if not torch.cuda.is_available():
            return
        ranks, gpus = self.place.local_world_size, torch.cuda.device_count()
        if ranks > gpus:
            raise ValueError(
                f"{ranks} ranks were started here, but there are {gpus} GPUs. Start one rank for each GPU."
            )
        torch.cuda.set_device(self.place.local_rank)

    def leave(self) -> None:
        """Leave the group in order; all ranks do so together, after their last collective operation."""
        try:
            if dist.is_initialized():  # `main` may have destroyed it
                dist.destroy_process_group()
            drop_groups()
        finally:
            self._left.set()
            # A thread that comes back from torch while the interpreter ends would abort the process. Not for ever: it
            # may wait for a machine that vanished.
            self._watcher.join(timeout=_FAREWELL)

    def fail(self, status: int, message: str) -> NoReturn:
        """End all ranks with `status`. The rank that fails first writes `message` to stderr, the others nothing."""
        try:
            rank, status = announce_failure(self._store, self.place.rank, status)
        except RuntimeError:  # the store went with the process that served it: nobody else can tell
            sys.stderr.write(message)
            end_process(status)
        if rank != self.place.rank:
            self._end_quietly(rank, status)
        sys.stderr.write(message)
        sys.stderr.flush()
        # The others end before this rank's connections break: a broken connection is another error to them.
        with contextlib.suppress(RuntimeError):
            self._store.set(_TOLD, "1")
            _wait_until(lambda: self._store.add(_ENDED, 0) >= self.place.world_size - 1)
        end_process(status, exit_functions=True)

    def _watch(self) -> None:
        """End this process when another rank has failed."""
        while not self._left.wait(_LOOK):
            try:
                if not self._store.check([_FAILURE]):
                    continue
                rank, status = announce_failure(self._store, self.place.rank, 1)
            except RuntimeError:
                return  # as in `fail`
            if rank != self.place.rank:
                self._end_quietly(rank, status)
            return

    def _end_quietly(self, failed: int, status: int) -> NoReturn:
        """End this rank without a word on the console, because rank `failed` (-1: killed) ended with `status`."""
        culprit = f"rank {failed}" if failed >= 0 else "another rank"
        write_to_log_files(logging.ERROR, f"Rank {self.place.rank} ends because {culprit} ended with status {status}.")
        with contextlib.suppress(RuntimeError):
            if failed >= 0:  # torchrun ends all ranks as soon as one has ended, also the one that is about to tell why
                _wait_until(lambda: self._store.check([_TOLD]))
            self._store.add(_ENDED, 1)
        end_process(status)


def drop_groups() -> None:
    """Drop the last references to process groups that were destroyed, which ends their threads.

    A thread of gloo that still runs while the interpreter ends aborts the process ("terminate called without an active
    exception"). detectron2 keeps groups in its module, and DistributedDataParallel in reference cycles.
    """
    comm._LOCAL_PROCESS_GROUP = None
    comm.create_local_process_group.cache_clear()
    comm._get_global_gloo_group.cache_clear()
    gc.collect()


def end_process(status: int, exit_functions: bool = False) -> NoReturn:
    """End this process and its data workers at once.

    Not by SystemExit: the end of an interpreter waits for other ranks or warns of those that went, and a thread of
    gloo that comes back to Python in the middle of it aborts the process.

    Args:
        exit_functions: run what was registered with `atexit` before.
    """
    end_workers()
    if exit_functions:
        atexit._run_exitfuncs()
    # Semaphores that nobody gives back are told to the user by Python's resource tracker, in a process of its own.
    multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def end_workers(grace: float = 0.0) -> None:
    """End the data workers and other daemonic children of this process, which is about to end.

    Args:
        grace: seconds between SIGTERM, which data workers ignore, and SIGKILL; 0 kills at once.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the handler of DataLoader raises when a worker is killed
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if grace:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + grace
        for child in children:
            child.join(max(0.0, deadline - time.monotonic()))
    for child in children:
        child.kill()


def write_to_log_files(level: int, message: str) -> None:
    """Write to the log files of OUTPUT_DIR and not to the console, where one rank tells the message once."""
    record = logger.makeRecord(logger.name, level, "", 0, message, (), None)
    for handler in _file_handlers():
        handler.handle(record)


def log_file() -> str | None:
    """Return the path of this rank's log file, None if there is none yet."""
    names = (getattr(handler.stream, "name", None) for handler in _file_handlers())
    return next((name for name in names if isinstance(name, str)), None)


def _file_handlers() -> list[logging.StreamHandler]:
    handlers = [h for h in logging.getLogger(PACKAGE).handlers if isinstance(h, logging.StreamHandler)]
    return [handler for handler in handlers if handler.stream not in (sys.stdout, sys.stderr)]


def _wait_until(done: Callable[[], bool]) -> None:
    """Wait until another rank is `done`, which it may never be, for it may have died."""
    deadline = time.monotonic() + _FAREWELL
    while not done() and time.monotonic() < deadline:
        time.sleep(_LOOK / 4)


def _connect(place: Place) -> dist.Store:
    return dist.TCPStore(place.host, place.port, is_master=False, timeout=DEFAULT_TIMEOUT)
