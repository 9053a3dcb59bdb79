"""Starting a command: arguments, one process or several ranks, and how errors and exit codes are told."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_argument_parser
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..utils.failures import add_debug, describe, write_any_character
from ..utils.user_errors import user_message
from .rank_group import (
    Place,
    RankGroup,
    announce_failure,
    end_process,
    failures_in,
    log_file,
    torchrun_place,
    write_to_log_files,
)
from .stop_signals import TrainingInterrupted, passed_on_to_children

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Return a parser of detectron2's training arguments, and of `--debug` (or the variable MASK2FORMER_DEBUG=1)."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")  # detectron2's is one port for each user, which a second training would need
    add_debug(parser)
    return parser


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
        method = multiprocessing.get_start_method()
        started = mp.start_processes(
            _child, args=(main, args, host, store.port, method), nprocs=args.num_gpus, join=False
        )
        status = _wait_for(started.processes, failures_in(store))
    return 128 + received[0] if received and not status else status


def _child(
    local_rank: int,
    main: Callable[[argparse.Namespace], object],
    args: argparse.Namespace,
    host: str,
    port: int,
    start_method: str,
) -> None:
    # A spawned process would spawn its data workers too: each would import everything and get a copy of the records.
    multiprocessing.set_start_method(start_method, force=True)
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun limits threads, too: each rank would take all cores
        torch.set_num_threads(max(1, torch.get_num_threads() // args.num_gpus))
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
