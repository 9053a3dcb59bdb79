"""Explicit copies between device and host."""

from __future__ import annotations

import torch
from torch import Tensor


def to_cpu(tensor: Tensor) -> Tensor:
    """Copy `tensor` to the CPU and wait for it; no other function of this package synchronizes in forward and loss."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensor.device))
    done.synchronize()
    return host


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to `device` without synchronization."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
