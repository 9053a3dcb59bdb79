"""Starting a command: arguments, one process or several ranks, signals, and how errors and exit codes are told."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import DataLoader

from ..config import find_config, load_config
from ..config_validation import validate_config
from ..data import register_from_config

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's training arguments, and `--debug` (or the environment variable MASK2FORMER_DEBUG=1)."""
    parser = default_argument_parser()
    parser.add_argument(
        "--debug",
        action="store_true",
        default=os.environ.get("MASK2FORMER_DEBUG", "") not in ("", "0"),
        help="show the traceback of mistakes in configuration and data, too",
    )
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Load, check and freeze the config; start logging to the console and OUTPUT_DIR; seed this process.

    OUTPUT_DIR gets config.yaml and log.txt (log.txt.rankN for the other processes).

    Raises:
        FileNotFoundError, ValueError: a mistake in the config, naming file, key and remedy.
    """
    if args.config_file:
        args.config_file = str(find_config(args.config_file))
    cfg = load_config(args.config_file or None, args.opts)
    note = _choose_device(cfg, getattr(args, "num_gpus", 1))
    # An evaluation takes no look at the training data, which may be on another machine.
    register_from_config(cfg, [*cfg.DATASETS.TEST, *(() if args.eval_only else cfg.DATASETS.TRAIN)])
    validate_config(cfg, training=not args.eval_only)
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask2former", abbrev_name="m2f")
    default_setup(cfg, args)
    if note:
        logger.info("%s", note)
    return cfg


def _choose_device(cfg: CfgNode, num_gpus: int) -> str:
    """Fall back to the CPU where there is no GPU or none is wanted; returns a line for the log, or ''."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return ""
    if num_gpus == 0:
        reason = "--num-gpus 0"
    elif not torch.cuda.is_available():
        reason = "no GPU is available"
    else:
        return ""
    wanted, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    return f"MODEL.DEVICE is set from {wanted} to cpu: {reason}."


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


def keep_workers(loader: Any) -> Any:
    """Let the workers of a DataLoader live through a signal to the whole job, until their rank has saved.

    They end when the loader is closed or the rank is gone. A loader with a `worker_init_fn` is left as it is.
    """
    if isinstance(loader, DataLoader) and loader.worker_init_fn is None:
        loader.worker_init_fn = _ignore_stop_signals
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


USER_ERRORS = (ValueError, FileNotFoundError)
"""Mistakes in configuration, data or command line: the message says what to do, no traceback is shown."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TorchrunPlace:
    """This process's place among those that torchrun started."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def torchrun_place(environment: Mapping[str, str] | None = None) -> TorchrunPlace | None:
    """Read torchrun's variables, None if this process was started in another way.

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
    except ValueError as error:
        raise ValueError(f"torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from error
    if not (0 <= rank < world and 0 <= local < local_world <= world):
        raise ValueError(
            f"torchrun's variables do not fit: RANK {rank} of {world}, LOCAL_RANK {local} of {local_world}"
        )
    return TorchrunPlace(rank, world, local, local_world)


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run `main(args)` in every process that `args` (see `argument_parser`) or torchrun asks for.

    Returns:
        Exit status: 0, 2 for a user's mistake (message only, unless `args.debug`), 128 + signal number after
        a clean stop, 1 otherwise.
    """
    try:
        place = torchrun_place()
        if place is not None:
            _join(place)
            _as_rank(main, args)
        else:
            _check_gpus(args)
            return _launch_here(main, args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except ProcessExitedException as error:  # a child that ended by SystemExit has told why
        return error.exit_code if error.exit_code >= 0 else 128 - error.exit_code
    except ProcessRaisedException as error:
        logger.error("%s", error)
        return 1
    except USER_ERRORS as error:
        if args.debug:
            raise
        _tell(error)
        return 2
    return 0


def _launch_here(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run in this process, or in child processes that get the signals which this one receives."""
    received: list[int] = []
    several = args.num_gpus * args.num_machines > 1
    with contextlib.ExitStack() as stack:
        if several:
            received = stack.enter_context(passed_on_to_children())
        detectron2_launch(
            _as_rank if several else _guarded,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    # A child that a SIGINT ends without a training to save reports success.
    return 128 + received[0] if received else 0


def _as_rank(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """`_guarded`, in a group of processes, which is left in order: a process that only ends may abort at its end."""
    _guarded(main, args)
    # Not after an error: it may wait for the other ranks, in vain.
    if dist.is_initialized():
        dist.destroy_process_group()


def _guarded(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    try:
        main(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        _tell(error)
        raise SystemExit(2) from None


def _tell(error: Exception) -> None:
    rank = f" (process {comm.get_rank()})" if comm.get_world_size() > 1 else ""
    sys.stderr.write(f"\nError{rank}: {error}\n(--debug shows where it arose)\n")


def _join(place: TorchrunPlace) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if place.local_world_size > torch.cuda.device_count():
            raise ValueError(
                f"torchrun started {place.local_world_size} processes here, but there are "
                f"{torch.cuda.device_count()} GPUs. Lower --nproc-per-node."
            )
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method="env://")
    comm.create_local_process_group(place.local_world_size)


def _check_gpus(args: argparse.Namespace) -> None:
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} "
            f"--machine-rank {args.machine_rank} do not fit together."
        )
    if args.num_machines > 1 and args.num_gpus == 0:
        raise ValueError("--num-gpus 0 trains on this machine's CPU only; use torchrun for several CPU machines.")
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs.")
