"""Sine position encoding of images and clips."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...utils.overrides import as_written, extensible
from ..shape_cache import ShapeCache


@extensible
class PositionEmbeddingSine(nn.Module):
    """Sine position encoding of an (H, W) grid, cached per shape.

    "Attention is all you need" extended to two axes as in DETR (arXiv 2005.12872): half of the channels encode the row,
    half the column.

    Args:
        num_pos_feats: channels of each axis, even; the encoding has C = 2 * num_pos_feats.
        temperature: base of the frequencies.
        normalize: positions run from 0 to `scale` instead of counting pixels.
        scale: 2 pi by default; only with `normalize`.
    """

    temporal = False

    def __init__(
        self, num_pos_feats: int = 64, temperature: float = 10000, normalize: bool = False, scale: float | None = None
    ) -> None:
        super().__init__()
        if num_pos_feats % 2:
            raise ValueError(f"the channels of the position encoding must be a multiple of 4, got {2 * num_pos_feats}")
        if scale is not None and not normalize:
            raise ValueError("a scale of the position encoding needs normalize=True")
        self.num_pos_feats, self.temperature, self.normalize = num_pos_feats, temperature, normalize
        self.scale = 2 * math.pi if scale is None else scale
        self._cache: ShapeCache[Tensor] = ShapeCache()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the positions of maps `x` (B, C', H, W); returns (B, C, H, W) float32.

        Args:
            mask: bool (B, H, W), True on padding, which is not counted; None: no padding.
        """
        if mask is not None:
            with torch.autocast(x.device.type, enabled=False):
                inside = (~mask).float()
                rows, columns = inside.cumsum(1), inside.cumsum(2)
                last_row, last_column = rows[:, -1:], columns[:, :, -1:]
                axes = self._waves(rows, last_row), self._waves(columns, last_column)
                return torch.cat(axes, dim=-1).permute(0, 3, 1, 2)
        height, width = x.shape[-2:]
        encoded = self.tokens(1, height, width, x.device)
        return encoded.T.unflatten(1, (height, width)).expand(x.shape[0], -1, -1, -1)  # exporters keep it variable

    def tokens(self, frames: int, height: int, width: int, device: torch.device) -> Tensor:
        """Return the encoding (T * H * W, C) float32 of a grid without padding, in the order frames, rows, columns."""

        def encode() -> Tensor:
            with torch.autocast(device.type, enabled=False):
                return self._grid(frames, height, width, device)

        return self._cache((frames, height, width, device), encode)

    def _grid(self, frames: int, height: int, width: int, device: torch.device) -> Tensor:
        rows = self._axis(height, device)[:, None].expand(-1, width, -1)
        columns = self._axis(width, device)[None].expand(height, -1, -1)
        grid = torch.cat((rows, columns), dim=-1).expand(frames, -1, -1, -1)
        if self.temporal:
            grid = grid + self._axis(frames, device, 2 * self.num_pos_feats)[:, None, None]
        return grid.flatten(0, 2)

    def _axis(self, size: int, device: torch.device, channels: int = 0) -> Tensor:
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        return self._waves(position, position[-1], channels)

    def _waves(self, position: Tensor, last: Tensor, channels: int = 0) -> Tensor:
        """Return (..., channels): sine and cosine, by turns, of positions (...) that end at `last`."""
        channels = channels or self.num_pos_feats
        if self.normalize:
            position = position / (last + 1e-6) * self.scale
        index = torch.arange(channels, dtype=torch.float32, device=position.device)
        frequency = self.temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / channels)
        angle = position[..., None] / frequency
        return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


@extensible
class PositionEmbeddingSine3D(PositionEmbeddingSine):
    """Position encoding of clips: the frame is encoded over all channels and added (video report, arXiv 2112.10764)."""

    temporal = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the positions of clips `x` (B, T, C', H, W); returns (B, T, C, H, W) float32.

        Args:
            mask: bool (B, T, H, W), True on padding, which is not counted; None: no padding.
        """
        if x.dim() != 5:
            raise ValueError(f"a clip has 5 dimensions (B, T, C, H, W), not the shape {tuple(x.shape)}")
        if mask is not None:
            with torch.autocast(x.device.type, enabled=False):
                inside = (~mask).float()
                frames, rows, columns = inside.cumsum(1), inside.cumsum(2), inside.cumsum(3)
                axes = self._waves(rows, rows[:, :, -1:]), self._waves(columns, columns[..., -1:])
                time = self._waves(frames, frames[:, -1:], 2 * self.num_pos_feats)
                return (torch.cat(axes, dim=-1) + time).permute(0, 1, 4, 2, 3)
        count, height, width = x.shape[1], x.shape[-2], x.shape[-1]
        encoded = self.tokens(count, height, width, x.device).unflatten(0, (count, height, width))
        return encoded.permute(0, 3, 1, 2).expand(len(x), -1, -1, -1, -1)


def tokens_of(encoding: nn.Module, maps: Tensor, frames: int, clips: bool) -> Tensor:
    """Return the encoding (T * H * W, B or 1, C) of maps (B * T, C', H, W) without padding.

    Modules with another `forward`, or with hooks, are called with maps, or (`clips`) with maps (B, T, C', H, W).
    """
    if as_written(encoding, PositionEmbeddingSine3D if clips else PositionEmbeddingSine, "forward"):
        assert isinstance(encoding, PositionEmbeddingSine)
        return encoding.tokens(frames, maps.shape[-2], maps.shape[-1], maps.device)[:, None]
    in_clips = maps.unflatten(0, (-1, frames))
    encoded = encoding(in_clips, None) if clips else encoding(maps, None).unflatten(0, (-1, frames))
    return encoded.permute(1, 3, 4, 0, 2).flatten(0, 2)
