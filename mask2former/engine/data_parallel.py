"""One model over several ranks: DistributedDataParallel, set up for what the model and the training allow."""

from __future__ import annotations

from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

REDUCTIONS = ("fp32", "bf16")

# Megabytes of gradients that are reduced at once, while the backward pass goes on. Smaller ones cost launches; of the
# last one nothing is left to overlap with.
_BUCKET_MB = 25


def distribute(
    model: nn.Module, *, find_unused_parameters: bool = False, static_graph: bool = True, reduction: str = "fp32"
) -> nn.Module:
    """Wrap a model in DistributedDataParallel; the model itself where there is one rank only.

    Gradients are views of the buckets that are reduced: no copy back, and no second set of gradients in memory.

    Args:
        model: on its device; all ranks get the weights of rank 0, but keep their buffers.
        find_unused_parameters: look in each iteration for parameters that it does not use.
        static_graph: each backward pass reaches the same parameters, and no pass of the first iteration is inside
            `no_sync`, with which torch (2.11) fails. No effect with `find_unused_parameters`.
        reduction: format in which gradients travel: "fp32" sums exactly what the ranks have; "bf16" halves the
            traffic, and rounds each gradient to 8 bits before the sum.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"SOLVER.GRADIENT_REDUCTION is {reduction!r}; use {' or '.join(REDUCTIONS)}")
    distributed: nn.Module = create_ddp_model(
        model,
        broadcast_buffers=False,
        find_unused_parameters=find_unused_parameters,
        static_graph=static_graph and not find_unused_parameters,
        gradient_as_bucket_view=True,
        bucket_cap_mb=_BUCKET_MB,
        device_ids=[comm.get_local_rank()] if next(model.parameters()).is_cuda else None,
    )
    if reduction == "bf16" and isinstance(distributed, DistributedDataParallel):
        distributed.register_comm_hook(None, bf16_compress_hook)
    return distributed
