"""What the processes of a training must have in common."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn


def share_buffers(model: nn.Module) -> None:
    """Give all ranks the batch-norm statistics of the first, whose model is the one that is saved.

    Each rank collects its own; training does not use them.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.is_contiguous():
                torch.distributed.broadcast(buffer, 0)


def check_same_start(step: int, folder: str) -> None:
    """All ranks must begin with the same step, else they would train different models or wait for ever.

    Raises:
        ValueError: they do not, for example because OUTPUT_DIR is a local folder of each machine.
    """
    steps = comm.all_gather(step)
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {rank}: {each}" for rank, each in enumerate(steps))
        raise ValueError(
            f"The processes would continue after different steps ({found}). OUTPUT_DIR {folder} must be a folder "
            "that all machines share; or copy the checkpoint and the file last_checkpoint to each."
        )


def check_batch(cfg: CfgNode) -> None:
    """Every rank and micro-batch must get the same whole number of images.

    Raises:
        ValueError: with the keys to change.
    """
    images, steps, ranks = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS, comm.get_world_size()
    if steps < 1 or images < 1 or images % (steps * ranks):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {images} must be a multiple of the number of processes ({ranks}) times "
            f"SOLVER.ACCUMULATION_STEPS ({steps}), here of {ranks * steps}."
        )
