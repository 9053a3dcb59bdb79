"""Starting one process or several (detectron2's launcher), or joining those that torchrun started."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from .signals import passed_on_to_children

logger = logging.getLogger(__name__)

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
        raise ValueError(
            f"torchrun's variables are incomplete, {', '.join(missing)} not set. Start with torchrun."
        )
    try:
        rank, world, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        local_world = int(environment.get("LOCAL_WORLD_SIZE", world))
    except ValueError as error:
        raise ValueError(
            f"torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}"
        ) from error
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
        raise ValueError(
            "--num-gpus 0 trains on this machine's CPU only; use torchrun for several CPU machines."
        )
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs."
        )
