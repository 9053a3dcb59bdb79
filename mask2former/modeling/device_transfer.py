"""Explicit copies between device and host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..structures.mask_bits import MaskBits, unpack_together

# Pinned memory is scarce: larger tensors, and what would make a `HostCopies` larger than the second, do without.
_PINNED = 2**24  # bytes
_PINNED_TOGETHER = 2**27


class HostCopy:
    """A copy to the CPU that is under way; only `value` waits for it.

    Copies and pickles of this object hold the finished copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.cpu()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(tensor.device))

    def ready(self) -> bool:
        """Return whether `value` would not wait."""
        return self._done is None or self._done.query()

    def value(self) -> Tensor:
        """Return the tensor on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._host

    def __reduce__(self) -> tuple[Any, ...]:
        return HostCopy, (self.value(),)


class HostCopies:
    """Copies of tensors to the CPU that are under way together, and are waited for once.

    Args:
        before: copies that are under way already, with which they share the memory that may be pinned.
    """

    def __init__(self, before: HostCopies | None = None) -> None:
        self._streams: set[torch.cuda.Stream] = set()
        self._done: list[torch.cuda.Event] = []
        self._free: int = _PINNED_TOGETHER if before is None else before._free

    def add(self, tensor: Tensor) -> Tensor:
        """Start a copy. Returns the tensor whose `cpu()` has the values after `wait`, without a further wait if it is
        small; it is to be given back soon, see `in_ordinary_memory`.
        """
        size = tensor.numel() * tensor.element_size()
        if not tensor.is_cuda or size > min(_PINNED, self._free):
            return tensor
        self._free -= size
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        self._streams.add(torch.cuda.current_stream(tensor.device))
        return host

    def close(self) -> None:
        """Let `wait` wait for nothing that the device is given from now on; no more copies can be added."""
        for stream in self._streams:
            done = torch.cuda.Event()
            done.record(stream)
            self._done.append(done)
        self._streams.clear()

    def wait(self) -> None:
        """Wait until the copies are there."""
        self.close()
        for done in self._done:
            if not done.query():
                done.synchronize()
        self._done.clear()


def in_ordinary_memory(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of `HostCopies.add` on the CPU, in a type and in memory that may be kept."""
    host = tensor.cpu().to(dtype)
    return host.clone() if host.data_ptr() == tensor.data_ptr() and host.is_pinned() else host


def to_cpu(tensor: Tensor) -> Tensor:
    """Copy `tensor` to the CPU and wait for it; no other function of this package synchronizes in forward and loss."""
    return HostCopy(tensor).value()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device`, without synchronization unless it is large and on the CPU."""
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.nbytes <= _PINNED_TOGETHER:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def masks_to_device(masks: Sequence[Tensor | MaskBits], device: torch.device) -> list[Tensor]:
    """Copy bool masks (..., H, W) to `device` without synchronization.

    From the CPU to a GPU they travel as bits: an eighth of the bytes to pin and to copy, in one copy. Bits that are all
    pinned, as those of data workers, go from where they are: do not change them before the device has reached this.
    """
    if device.type != "cuda" or not all(_packable(each) for each in masks):
        tensors = (each.unpacked() if isinstance(each, MaskBits) else each for each in masks)
        return [each.to(device, non_blocking=True) for each in tensors]
    packed = [each if isinstance(each, MaskBits) else MaskBits.of(each) for each in masks]
    return unpack_together(_together([each.bits for each in packed], device), packed)


def _together(bits: Sequence[Tensor], device: torch.device) -> Tensor:
    """Copy the bytes of CPU tensors to the device, one tensor after the other, in one tensor (bytes,)."""
    sizes = [each.numel() for each in bits]
    if bits and all(each.is_pinned() for each in bits):
        there = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        for place, each in zip(there.split(sizes), bits, strict=True):
            place.copy_(each.reshape(-1), non_blocking=True)
        return there
    upload = _upload((sum(sizes),), torch.uint8, device)
    for place, each in zip(upload.split(sizes), bits, strict=True):
        place.numpy()[:] = each.numpy().reshape(-1)
    return upload.to(device, non_blocking=True)


def _packable(masks: Tensor | MaskBits) -> bool:
    if isinstance(masks, MaskBits):
        return masks.bits.device.type == "cpu"
    return masks.device.type == "cpu" and masks.dtype == torch.bool


def stack_to_device(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack CPU tensors of one shape and dtype, and copy them to `device`, without synchronization unless they are
    large.
    """
    shape = (len(tensors), *tensors[0].shape)
    return torch.stack(list(tensors), out=_upload(shape, tensors[0].dtype, device)).to(device, non_blocking=True)


def _upload(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a new CPU tensor from which a copy to the device is to start, pinned if it is not large.

    PyTorch gives its memory away only after the copy, and never back to the system: clips may be of any length.
    """
    pin = device.type == "cuda" and math.prod(shape) * dtype.itemsize <= _PINNED_TOGETHER
    return torch.empty(shape, dtype=dtype, pin_memory=pin)


def to_device_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy small CPU tensors of one dtype to `device`, all in one copy, without synchronization."""
    flat = to_device(torch.cat([tensor.flatten() for tensor in tensors]), device)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
