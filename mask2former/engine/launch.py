"""Starting a command: arguments, one process or several ranks, signals, and how errors and exit codes are told."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.utils.data import DataLoader

from ..checkpoint.directory import has_checkpoint
from ..config import find_config, load_config
from ..config_validation import config_warnings, validate_config
from ..config_values import check_values
from ..data import register_from_config
from ..errors import ConfigError
from ..utils.atomic_file import check_writable
from ..utils.console import file_only, setup_console
from ..utils.device import select_device
from ..utils.failures import add_debug, describe, write_any_character
from ..utils.file_io import write_bytes
from ..utils.locks import Lock
from ..utils.user_errors import user_message
from .output_directory import LOCK_NAME
from .rank_group import (
    Place,
    RankGroup,
    announce_failure,
    end_process,
    end_workers,
    failures_in,
    log_file,
    torchrun_place,
    write_to_log_files,
)
from .resume import check_length_of

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Return a parser of detectron2's training arguments, and of `--debug` (or the variable MASK2FORMER_DEBUG=1)."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")  # detectron2's is one port for each user, which a second training would need
    add_debug(parser)
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Load, check and freeze the config; start logging to the console and OUTPUT_DIR; seed this process.

    OUTPUT_DIR gets log.txt (log.txt.rankN for the other processes) and config.yaml; of a training that is resumed, the
    latter when `Trainer.resume_or_load` has found that its checkpoint fits. The complete config and the
    environment are written to log.txt only.

    Raises:
        FileNotFoundError, ValueError: a mistake in the config, naming file, key and remedy.
        InUseError: another training writes to OUTPUT_DIR.
        OSError: OUTPUT_DIR cannot be written; the error names it and the reason.
    """
    if args.config_file:
        args.config_file = str(find_config(args.config_file))
    cfg = load_config(args.config_file or None, args.opts)
    check_values(cfg, training=not args.eval_only)  # before anything reads them
    note = _choose_device(cfg, getattr(args, "num_gpus", 1))
    # An evaluation takes no look at the training data, which may be on another machine.
    register_from_config(cfg, [*cfg.DATASETS.TEST, *(() if args.eval_only else cfg.DATASETS.TRAIN)])
    validate_config(cfg, training=not args.eval_only)
    try:
        select_device(cfg.MODEL.DEVICE)
    except ValueError as error:
        raise ConfigError(f"MODEL.DEVICE: {error}") from error
    if args.resume and not args.eval_only:
        check_length_of(cfg)
    cfg.freeze()
    if comm.is_main_process():  # before anything is written there, or read
        check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR", directory=True)
        if not args.eval_only:
            _SETUP_LOCKS[cfg.OUTPUT_DIR] = training_lock(cfg.OUTPUT_DIR)
    _setup_log(cfg.OUTPUT_DIR)
    with file_only(), _config_kept(cfg) if args.resume and not args.eval_only else contextlib.nullcontext():
        default_setup(cfg, args)
    if note:
        logger.info("%s", note)
    for warning in config_warnings(cfg) if not args.eval_only and comm.is_main_process() else ():
        logger.warning("%s", warning)
    return cfg


_ACCEPTED_LATER: dict[str, str] = {}  # OUTPUT_DIR -> config.yaml of a resumed training


@contextlib.contextmanager
def _config_kept(cfg: CfgNode) -> Iterator[None]:
    """Keep the config.yaml of a training until its checkpoint is known to fit the new one; see `accept_config`."""
    file = Path(cfg.OUTPUT_DIR, "config.yaml")
    before = file.read_bytes() if comm.is_main_process() and file.is_file() and has_checkpoint(cfg.OUTPUT_DIR) else None
    yield
    if before is not None:
        write_bytes(file, before)
        _ACCEPTED_LATER[cfg.OUTPUT_DIR] = cfg.dump()


def accept_config(directory: str) -> None:
    """Write the config.yaml of a resumed training, whose config fits its checkpoint. For rank 0."""
    content = _ACCEPTED_LATER.pop(directory, None)
    if content is not None:
        write_bytes(Path(directory, "config.yaml"), content.encode())


_SETUP_LOCKS: dict[str, Lock] = {}  # OUTPUT_DIR -> lock that the training will take over


def training_lock(directory: str) -> Lock:
    """Return the lock of OUTPUT_DIR, for one training at a time: the one of `setup`, or a new one. For rank 0.

    Raises:
        InUseError: another process trains there; the message names it and its host.
    """
    return _SETUP_LOCKS.pop(directory, None) or Lock(Path(directory) / LOCK_NAME, f"The output directory {directory}")


def _setup_log(directory: str) -> None:
    rank = comm.get_rank()
    setup_logger(directory, distributed_rank=rank, name="mask2former", abbrev_name="m2f")
    # As `default_setup` calls them, which then adds no handlers: detectron2 remembers the arguments.
    setup_logger(directory, distributed_rank=rank, name="fvcore")
    setup_logger(directory, distributed_rank=rank)
    setup_console()


def _choose_device(cfg: CfgNode, num_gpus: int) -> str:
    """Fall back to the CPU where there is no GPU or none is requested; return a line for the log, or ''."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return ""
    if num_gpus == 0:
        reason = "--num-gpus 0"
    elif not torch.cuda.is_available():
        reason = "no GPU is available"
    else:
        return ""
    requested, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    return f"MODEL.DEVICE is set from {requested} to cpu: {reason}."


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


_GRACE = 30.0  # seconds for the other ranks to end by themselves, after one has ended with an error


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run `main(args)` in every rank that `args` (see `argument_parser`) or torchrun asks for.

    Returns:
        Exit status: 0, 2 for a user's mistake, 128 + signal number after a clean stop or Ctrl-C, 1 otherwise. Does not
        return on a rank of torchrun when one of the ranks has failed. Errors are a message; with `args.debug` those
        of a process without others are raised.
    """
    try:
        place = torchrun_place()
        _check_gpus(args) if place is None else _check_torchrun(args, place)
        if place is None and args.num_gpus * args.num_machines > 1:
            return _start_ranks(main, args)
        return _run_rank(main, args, place)
    except (Exception, KeyboardInterrupt) as error:
        if args.debug:
            raise
        sys.stderr.write(_message(error, debug=False) or "\ninterrupted\n")
        return _status(error, debug=False)


def _run_rank(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, place: Place | None) -> int:
    """Join the ranks, run `main`, leave in order; returns the exit status. This is all that a rank does.

    Args:
        place: None for a process without others, where errors are raised.
    """
    write_any_character()
    group = RankGroup(place) if place is not None else None
    status = 0
    try:
        if group is not None:
            group.use_device()
        main(args)
    except BaseException as error:
        status = _status(error, args.debug)
        if not isinstance(error, SystemExit):
            write_to_log_files(logging.ERROR, _message(error, debug=True).strip())
        if group is None:
            if not isinstance(error, SystemExit):
                raise
            sys.stderr.write(_message(error, args.debug))
        # All ranks stop together on a signal. Any other error is one rank's, which the others may wait for.
        if group is not None and status and not isinstance(error, TrainingInterrupted):
            group.fail(status, _message(error, args.debug))
    if group is not None:
        group.leave()
    return status


def _status(error: BaseException, debug: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 2 if user_message(error) is not None and not debug else 1


def _message(error: BaseException, debug: bool) -> str:
    """Return what is told about `error`; nothing of an exit that was asked for."""
    if isinstance(error, SystemExit):
        return f"{error.code}\n" if isinstance(error.code, str) else ""
    if isinstance(error, KeyboardInterrupt):
        return ""
    rank = f" (rank {comm.get_rank()})" if comm.get_world_size() > 1 else ""
    if not debug:
        return f"\nError{rank}: {describe(error, log_file=log_file(), separator=chr(10))}\n"
    return f"\nError{rank}:\n{''.join(traceback.format_exception(error))}"


def _start_ranks(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run the ranks of this machine in child processes, which get the signals that this one receives."""
    host, port = _meeting_place(args)
    # Served here: the port is taken before it is told, and the store outlives a rank that fails.
    store = _open_store(host, port, serve=args.machine_rank == 0)
    with passed_on_to_children() as received:
        started = mp.start_processes(_child, args=(main, args, host, store.port), nprocs=args.num_gpus, join=False)
        status = _wait_for(started.processes, failures_in(store))
    return 128 + received[0] if received and not status else status


def _child(
    local_rank: int, main: Callable[[argparse.Namespace], object], args: argparse.Namespace, host: str, port: int
) -> None:
    place = Place(
        rank=args.machine_rank * args.num_gpus + local_rank,
        world_size=args.num_machines * args.num_gpus,
        local_rank=local_rank,
        local_world_size=args.num_gpus,
        host=host,
        port=port,
        served=True,
    )
    try:
        status = _run_rank(main, args, place)
    except BaseException as error:  # of joining and leaving
        status = _status(error, args.debug)
        sys.stderr.write(_message(error, args.debug))
    end_process(status, exit_functions=True)


def _wait_for(ranks: Sequence[BaseProcess], failures: dist.Store) -> int:
    """Wait until all child processes have ended; returns the exit status of the first that failed, or 0."""
    status, running = 0, {rank.sentinel: rank for rank in ranks}
    while running:
        ready = multiprocessing.connection.wait(list(running), timeout=_GRACE if status else None)
        for rank in running.values() if not ready else ():
            rank.kill()
        for sentinel in ready:
            rank = running.pop(sentinel)  # type: ignore[arg-type]
            rank.join()
            if rank.exitcode and not status:
                status = rank.exitcode if rank.exitcode > 0 else 128 - rank.exitcode
                if rank.exitcode < 0:
                    name = signal.Signals(-rank.exitcode).name
                    hint = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
                    sys.stderr.write(f"\nError: process {rank.pid}, a rank, was ended by {name}{hint}.\n")
                # A rank that was killed could not tell the others.
                with contextlib.suppress(RuntimeError):  # served by another machine that has ended
                    announce_failure(failures, -1, status)
    return status


def _meeting_place(args: argparse.Namespace) -> tuple[str, int]:
    """Read host and port from --dist-url; port 0 stands for any free one.

    Raises:
        ValueError: it is not tcp://HOST:PORT, which several machines need.
    """
    url = urlparse(args.dist_url)
    if url.scheme == "tcp" and url.hostname and url.port is not None:
        return url.hostname, url.port
    if args.dist_url != "auto" or args.num_machines > 1:
        raise ValueError(
            f"--dist-url {args.dist_url} with --num-machines {args.num_machines}: give tcp://HOST:PORT, an address of "
            "the first machine with a free port (one machine can do with auto)."
        )
    return "127.0.0.1", 0


def _open_store(host: str, port: int, serve: bool) -> dist.TCPStore:
    try:
        return dist.TCPStore(host, port, is_master=serve, wait_for_workers=False, timeout=DEFAULT_TIMEOUT)
    except RuntimeError as error:
        raise ValueError(f"--dist-url tcp://{host}:{port} cannot be used: {error}") from error


def _check_torchrun(args: argparse.Namespace, place: Place) -> None:
    """Refuse arguments that contradict torchrun, which decides how many ranks there are and where they meet.

    `--num-gpus` 1 is the default and cannot be told from one that was given; 0 selects the CPU.

    Raises:
        ValueError: they do.
    """
    if args.num_gpus not in (0, 1, place.local_world_size):
        raise ValueError(
            f"--num-gpus {args.num_gpus} has no effect with torchrun, which started {place.local_world_size} ranks on "
            "this machine: drop it, or start without torchrun."
        )
    for option, default in (("num_machines", 1), ("machine_rank", 0), ("dist_url", "auto")):
        value = getattr(args, option)
        if value != default:
            raise ValueError(
                f"--{option.replace('_', '-')} {value} has no effect with torchrun: drop it, and give torchrun "
                "--nnodes, --node-rank and --master-addr."
            )


def _check_gpus(args: argparse.Namespace) -> None:
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} "
            f"--machine-rank {args.machine_rank} do not fit together."
        )
    if args.num_machines > 1 and args.num_gpus == 0:
        raise ValueError("--num-gpus 0 trains on this machine's CPU only; use torchrun for several CPU machines.")
    if args.dist_url != "auto" and args.num_gpus * args.num_machines <= 1:
        raise ValueError(
            f"--dist-url {args.dist_url} has no effect on one process, which --num-gpus {args.num_gpus} and "
            "--num-machines 1 start: drop it."
        )
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs.")
