"""Masks of one size as bits: an eighth of the bytes that pass between processes, and to a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskBits:
    """Masks (..., H, W), each from a new byte on, row by row, the first pixel in the lowest bit.

    Attributes:
        bits: uint8 (..., ceil(H * W / 8)), on any device.
        size: (H, W) in pixels.
    """

    bits: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, masks: Tensor) -> MaskBits:
        """Pack bool masks (..., H, W) that are on the CPU."""
        height, width = masks.shape[-2:]
        rows = masks.reshape(*masks.shape[:-2], height * width).numpy()
        return cls(torch.from_numpy(np.packbits(rows, axis=-1, bitorder="little")), (height, width))

    def unpacked(self) -> Tensor:
        """Return the masks, bool (..., H, W), on the device of the bits."""
        return self._cut(_pixels(self.bits))

    def _cut(self, pixels: Tensor) -> Tensor:
        """Return masks (..., H, W) of the pixels (..., bytes * 8) of their bytes; a view."""
        height, width = self.size
        return pixels[..., : height * width].unflatten(-1, (height, width))

    def __len__(self) -> int:
        return len(self.bits)


def unpack_together(bits: Tensor, like: Sequence[MaskBits]) -> list[Tensor]:
    """Return the masks of several objects as views of one tensor: few launches on a GPU, however many there are.

    Args:
        bits: uint8 (bytes,), the bits of all of them, one object after the other.
        like: the objects, whose own bits are not read.
    """
    shapes = [(*each.bits.shape[:-1], 8 * each.bits.shape[-1]) for each in like]
    parts = _pixels(bits).split([math.prod(shape) for shape in shapes])
    return [each._cut(part.view(shape)) for each, part, shape in zip(like, parts, shapes, strict=True)]


def _pixels(bits: Tensor) -> Tensor:
    """Return the bits (..., bytes) apart, bool (..., bytes * 8)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return bits[..., None].bitwise_right_shift(shifts).bitwise_and_(1).view(torch.bool).flatten(-2)
