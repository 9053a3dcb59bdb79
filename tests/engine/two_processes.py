"""The program that `test_distributed.py` runs on two processes."""

from __future__ import annotations

import argparse
import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from tiny_training import TinyTrainer, start, tiny_config
from torch.utils.data import DataLoader

from mask2former.engine.stop_signals import keep_workers

KEYS = ("SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATION_STEPS", "2")


class HalfTrainer(TinyTrainer):
    """Deterministic; each rank takes its share of one common batch.

    With seed 99, rank 1 meets one NaN; with seed 98, one image that cannot be read.
    """

    dropout = 0.0

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0, seed: int | None = None) -> Any:
        ranks, rank = comm.get_world_size(), comm.get_rank()
        step = start_iteration
        while True:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1000 + step))
            if ranks == 1:
                micro_batches = [x[:4], x[4:]]
            else:
                micro_batches = [x[2 * rank : 2 * rank + 2], x[4 + 2 * rank : 6 + 2 * rank]]
            for rows in micro_batches:
                if seed == 98 and step == 2 and rank == 1:
                    raise ValueError("image_bad.png cannot be read")
                bad = seed == 99 and step == 2 and rank == 1
                name = "image_bad.png" if bad else "image.png"
                yield [{"x": row, "y": row.sum() * (float("nan") if bad else 1), "file_name": name} for row in rows]
            step += 1


def main(args: argparse.Namespace) -> None:
    """As train_net.py's, with a tiny model."""
    settings = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    directory = Path(settings.pop("OUTPUT_DIR"))
    setup_logger(str(directory), distributed_rank=comm.get_rank(), name="mask2former")
    (directory / f"workers_{comm.get_rank()}").write_text(multiprocessing.get_start_method())
    atexit.register((directory / f"exit_{comm.get_rank()}").touch)
    rest = [item for pair in settings.items() for item in pair]
    start(tiny_config(directory, *KEYS, *rest), resume=args.resume, trainer_class=HalfTrainer).train()


def _with_workers() -> Iterator[Any]:
    """All ranks are there, and have data workers that live on while the result does."""
    comm.synchronize()
    batches = iter(keep_workers(DataLoader(range(1000), num_workers=1)))  # type: ignore[arg-type]
    next(batches)
    return batches


def _wait_for_the_other_rank() -> None:
    comm.all_gather("never answered")
    print("ended by itself")


def user_error_on_all(args: argparse.Namespace) -> None:
    raise FileNotFoundError("no file x.json")


def user_error_on_rank_0(args: argparse.Namespace) -> None:
    batches = _with_workers()
    if comm.get_rank() == 0:
        raise FileNotFoundError("no file x.json")
    _wait_for_the_other_rank()
    next(batches)


def user_error_on_rank_1(args: argparse.Namespace) -> None:
    batches = _with_workers()
    if comm.get_rank() == 1:
        raise FileNotFoundError("no file x.json")
    threading.Event().wait()  # never set: nothing here knows of the other rank
    next(batches)


def unexpected_error_on_rank_1(args: argparse.Namespace) -> None:
    comm.synchronize()
    if comm.get_rank() == 1:
        raise KeyError("our own mistake")
    _wait_for_the_other_rank()


def rank_1_is_killed(args: argparse.Namespace) -> None:
    comm.synchronize()
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()
