"""Images of several sizes in one tensor, and whether training is distributed, by the names of DETR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class NestedTensor:
    """Padded images and where they are padded.

    Attributes:
        tensors: (B, C, H, W).
        mask: bool (B, H, W), True where an image is padded; or None.
    """

    def __init__(self, tensors: Tensor, mask: Tensor | None) -> None:
        self.tensors = tensors
        self.mask = mask

    def to(self, device: torch.device | str) -> NestedTensor:
        """Return both on the device."""
        return NestedTensor(self.tensors.to(device), None if self.mask is None else self.mask.to(device))

    def decompose(self) -> tuple[Tensor, Tensor | None]:
        """Return images and mask."""
        return self.tensors, self.mask

    def __repr__(self) -> str:
        return repr(self.tensors)


def _max_by_axis(the_list: Sequence[Sequence[int]]) -> list[int]:
    """Return the largest entry of each axis of several shapes of one length."""
    return [max(sizes) for sizes in zip(*the_list, strict=True)]


def nested_tensor_from_tensor_list(tensor_list: Sequence[Tensor]) -> NestedTensor:
    """Pad images (C, H, W) with zeros, right and below, to the largest of them.

    Raises:
        ValueError: there is no image, or one is not (C, H, W).
    """
    if not len(tensor_list) or any(image.dim() != 3 for image in tensor_list):
        raise ValueError(f"images must be (C, H, W), got {[tuple(image.shape) for image in tensor_list]}")
    channels, height, width = _max_by_axis([image.shape for image in tensor_list])
    first = tensor_list[0]
    tensors = first.new_zeros(len(tensor_list), channels, height, width)
    mask = torch.ones(len(tensor_list), height, width, dtype=torch.bool, device=first.device)
    for image, padded, is_padding in zip(tensor_list, tensors, mask, strict=True):
        padded[: image.shape[0], : image.shape[1], : image.shape[2]] = image
        is_padding[: image.shape[1], : image.shape[2]] = False
    return NestedTensor(tensors, mask)


def is_dist_avail_and_initialized() -> bool:
    """Return whether this is one rank of a distributed training."""
    return dist.is_available() and dist.is_initialized()
