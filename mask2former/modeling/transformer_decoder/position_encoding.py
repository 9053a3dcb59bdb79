"""Sine position encoding of images and clips."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..shape_cache import ShapeCache


class PositionEncoding(nn.Module):
    """Sine position encoding of a (T, H, W) grid, cached per shape.

    "Attention is all you need" extended to two axes as in DETR (arXiv 2005.12872) and to time as in the video
    report (arXiv 2112.10764): half of the channels encode the row, half the column; with `temporal` the frame
    index is encoded over all channels and added.
    """

    def __init__(self, dim: int, temporal: bool = False, temperature: float = 10000.0) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"the channels of the position encoding must be a multiple of 4, got {dim}")
        self.dim = dim
        self.temporal = temporal
        self.temperature = temperature
        self._cache: ShapeCache[Tensor] = ShapeCache()

    def _axis(self, size: int, channels: int, device: torch.device) -> Tensor:
        """Return (size, channels): sine and cosine of the normalized position i + 1 over 2 pi."""
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        position = position / (position[-1] + 1e-6) * (2 * math.pi)
        index = torch.arange(channels, dtype=torch.float32, device=device)
        frequency = self.temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / channels)
        angle = position[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    def _encode(self, frames: int, height: int, width: int, device: torch.device) -> Tensor:
        rows = self._axis(height, self.dim // 2, device)[:, None].expand(-1, width, -1)
        columns = self._axis(width, self.dim // 2, device)[None].expand(height, -1, -1)
        grid = torch.cat((rows, columns), dim=-1).expand(frames, -1, -1, -1)
        if self.temporal:
            grid = grid + self._axis(frames, self.dim, device)[:, None, None]
        return grid.flatten(0, 2)

    def forward(self, frames: int, height: int, width: int, device: torch.device) -> Tensor:
        """Return the encoding (T * H * W, C) float32, in the order frames, rows, columns."""

        def encode() -> Tensor:
            with torch.autocast(device.type, enabled=False):
                return self._encode(frames, height, width, device)

        return self._cache((frames, height, width, device), encode)


class PositionEmbeddingSine(nn.Module):
    """Sine position encoding of maps (B, C, H, W) with C = 2 num_pos_feats, by the keywords of DETR."""

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000.0,
        normalize: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if not normalize or scale not in (None, 2 * math.pi):
            raise ValueError("the position encoding requires normalize=True, scale=2 pi")
        self.num_pos_feats = num_pos_feats
        self._encoding = PositionEncoding(2 * num_pos_feats, temperature=temperature)

    def tokens(self, frames: int, height: int, width: int, device: torch.device) -> Tensor:
        """Return the encoding (T * H * W, C) float32, in the order frames, rows, columns."""
        return self._encoding(frames, height, width, device)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the encoding (B, C, H, W) of maps `x` (B, any, H, W), one for all images without a copy for each."""
        if mask is not None:
            raise ValueError("the position encoding takes no mask")
        height, width = x.shape[-2:]
        encoding = self.tokens(1, height, width, x.device).T.unflatten(1, (height, width))
        return encoding.expand(x.shape[0], -1, -1, -1)
