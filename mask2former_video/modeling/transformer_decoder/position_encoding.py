"""Sine position encoding of clips."""

from __future__ import annotations

from torch import Tensor, nn

from ..._sibling import core


class PositionEmbeddingSine3D(nn.Module):
    """Position encoding of frames, rows and columns (arXiv 2112.10764): that of images, plus that of the frame.

    Args:
        num_pos_feats: half of the channels C.
        temperature, normalize, scale: as of `PositionEmbeddingSine`, which computes both.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        encoding = core("modeling.transformer_decoder.position_encoding").PositionEmbeddingSine
        self.num_pos_feats = num_pos_feats
        self.space = encoding(num_pos_feats, temperature, normalize, scale)
        self.time = encoding(2 * num_pos_feats, temperature, normalize, scale)  # all channels for one axis

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the encoding (B, T, C, H, W).

        Args:
            x: (B, T, any number of channels, H, W); its values are not read.
            mask: bool (B, T, H, W), True where there is no image.
        """
        if x.dim() != 5:
            raise ValueError(f"a clip has 5 dimensions (B, T, C, H, W), not the shape {tuple(x.shape)}")
        batch, frames, _, height, width = x.shape
        space = self.space(x.flatten(0, 1), None if mask is None else mask.flatten(0, 1)).unflatten(0, (batch, frames))
        if mask is None:  # frames as the rows of one map per clip, or per pixel
            rows, lines = x.new_empty(batch, 1, frames, 1), None
        else:
            rows = x.new_empty(batch * height * width, 1, frames, 1)
            lines = mask.permute(0, 2, 3, 1).reshape(-1, frames, 1)
        time = self.time(rows, lines)[:, : 2 * self.num_pos_feats, :, 0]  # (B or B H W, C, T)
        places = (1, 1) if mask is None else (height, width)
        return space + time.unflatten(0, (batch, *places)).permute(0, 4, 3, 1, 2)
