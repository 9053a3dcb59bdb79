"""Predictions and ground truth of a training batch, and how both are read at points (PointRend, arXiv 1912.08193).

Points are (x, y) in [0, 1] of the padded image; pixel i has its center at (i + 0.5) / size. Reads are bilinear and
zero outside. Which numbers name what, for B images of T frames, L predictions and Q queries:

    Predictions                   Assignment of image b           MaskBank
    logits (L, B, Q, K + 1)       M pairs, each of                the masks of all images, frame by frame
                                                                  row 0   image 0, target 0, frame 0
      layer l ------------------- layer  (0: the last layer,      row 1   image 0, target 0, frame 1
      query q ------------------- query      l: layer l - 1)        ...
                                  target ---------------------->  row = first row of image b + target * T + frame
                                                                    ...
    matched(b, layer, query)                                      sample(row, points)
      -> mask logits (M, T, H, W)   == compared at points ==        -> (M * T, P) in [0, 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Reads that are made together, so that their index arithmetic stays small.
_CHUNK = 2**24


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear reads of maps (N, C, H, W) at points (N, P, 2): (N, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None].to(maps.dtype) - 1, align_corners=False)[..., 0]


@dataclass
class MaskBank:
    """Binary masks of different sizes in one flat buffer, read without padding, copying or converting them.

    Attributes:
        data: (sum of H * W,) uint8, the masks one after another, row by row.
        start, height, width: (N,) int64 where each mask begins, and its size.
    """

    data: Tensor
    start: Tensor
    height: Tensor
    width: Tensor

    @classmethod
    def of(cls, masks: Sequence[Tensor], device: torch.device) -> MaskBank:
        """From groups of masks, bool (n, H, W) each; mask N counts through the groups in order."""
        rows = [(m.shape[-2], m.shape[-1]) for m in masks for _ in range(m.shape[0])]
        sizes = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
        area = sizes.prod(1)
        table = torch.stack((area.cumsum(0) - area, sizes[:, 0], sizes[:, 1]))
        table = table.to(device, non_blocking=True)
        # A mask may be of any type, as in users' own mappers: what is not zero belongs to the object.
        binary = [m if m.dtype == torch.bool else m != 0 for m in masks]
        flat = [m.to(device, non_blocking=True).contiguous().view(torch.uint8).flatten() for m in binary]
        data = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.uint8, device=device)
        return cls(data, *table.unbind(0))

    def sample(self, index: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Soft values in [0, 1] of the masks `index` at points of a padded image.

        Args:
            index: (M,) int64 which masks.
            points: (M, P, 2), or (1, P, 2) shared by all.
            size: (H, W) of the padded image that the points refer to; masks lie in its upper left corner.

        Returns:
            (M, P) float32.
        """
        height, width = self.height[index, None], self.width[index, None]
        x = points[..., 0].float() * size[1] - 0.5
        y = points[..., 1].float() * size[0] - 0.5
        left, top = x.floor(), y.floor()
        dx, dy = x - left, y - top
        out = torch.zeros((), device=points.device)
        for row, row_weight in ((top.long(), 1 - dy), (top.long() + 1, dy)):
            for column, column_weight in ((left.long(), 1 - dx), (left.long() + 1, dx)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                offset = self.start[index, None] + row * width + column
                value = self.data[torch.where(inside, offset, 0)] if len(self.data) else torch.zeros_like(offset)
                out = out + row_weight * column_weight * (value * inside)
        return out

    def sample_shared(self, group: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """All masks, at the points that their group shares.

        Args:
            group: (N,) int64 which row of `points` each mask is read at.
            points: (G, P, 2); size: as in `sample`.

        Returns:
            (N, P) float32.
        """
        index = torch.arange(len(group), device=group.device)
        step = max(1, _CHUNK // points.shape[1])
        parts = [
            self.sample(index[i : i + step], points[group[i : i + step]], size) for i in range(0, len(group), step)
        ]
        return torch.cat(parts) if parts else points.new_zeros(0, points.shape[1])


@torch.no_grad()
def uncertain_points(logits: Tensor, num_points: int, oversample_ratio: float, importance_ratio: float) -> Tensor:
    """Points for the mask losses: mostly where the prediction is least certain, the rest uniform.

    Args:
        logits: (N, H, W) before the sigmoid.
        num_points: P.
        oversample_ratio: P times this many candidates are drawn.
        importance_ratio: share of P taken from the candidates with the smallest |logit|.

    Returns:
        (N, P, 2).
    """
    candidates = int(num_points * oversample_ratio)
    important = int(importance_ratio * num_points)
    points = torch.rand(len(logits), candidates, 2, device=logits.device)
    # Uncertainty is that of the sampled logits: sampling an uncertainty map would miss zero crossings.
    certainty = sample_maps(logits[:, None], points)[:, 0].abs()
    chosen = certainty.topk(important, dim=1, largest=False, sorted=False).indices
    points = points.gather(1, chosen[..., None].expand(-1, -1, 2))
    uniform = torch.rand(len(logits), num_points - important, 2, device=logits.device)
    return torch.cat((points, uniform), dim=1)


@dataclass
class Predictions:
    """L predictions (the last one first, then the earlier ones in order).

    Attributes:
        logits: (L, B, Q, K + 1) class logits.
        embeds: (L, B, Q, C) query embeddings, whose products with `features` are the mask logits; or None.
        features: (B, T, C, H4, W4), or None.
        masks: (L, B, Q, T, H4, W4) mask logits of decoders that make them all; or None.
    """

    logits: Tensor
    embeds: Tensor | None = None
    features: Tensor | None = None
    masks: Tensor | None = None

    @classmethod
    def of(cls, outputs: Mapping[str, Any]) -> Predictions:
        """From a decoder's outputs: with "pred_embeds" and "mask_features", or with "pred_masks"
        (B, Q, H4, W4) or (B, Q, T, H4, W4); earlier predictions in "aux_outputs"."""
        steps = [outputs, *outputs.get("aux_outputs", ())]
        logits = torch.stack([s["pred_logits"] for s in steps]).float()
        if "pred_embeds" in outputs:
            embeds = torch.stack([s["pred_embeds"] for s in steps]).float()
            return cls(logits, embeds, outputs["mask_features"].float())
        masks = torch.stack([s["pred_masks"] for s in steps]).float()
        return cls(logits, masks=masks[:, :, :, None] if masks.dim() == 5 else masks)

    def sample(self, points: Tensor) -> Iterator[Tensor]:
        """Mask logits of all queries at points (B, P, 2), in every frame: one image after another (L * Q, T * P)."""
        if self.embeds is not None and self.features is not None:
            frames = self.features.shape[1]
            per_frame = points.repeat_interleave(frames, dim=0)
            sampled = sample_maps(self.features.flatten(0, 1), per_frame).unflatten(0, (-1, frames))  # (B, T, C, P)
            for image, values in enumerate(sampled.transpose(1, 2).flatten(2)):
                yield self.embeds[:, image].flatten(0, 1) @ values
            return
        assert self.masks is not None
        frames = self.masks.shape[3]
        for image in range(self.masks.shape[1]):
            masks = self.masks[:, image].flatten(0, 2)[None]  # (1, L Q T, H, W)
            yield sample_maps(masks, points[image][None])[0].view(-1, frames * points.shape[1])

    def matched(self, image: int, layers: Tensor, queries: Tensor) -> Tensor:
        """Mask logits (M, T, H, W) of chosen queries of one image; `layers` and `queries` are (M,) int64."""
        if self.embeds is not None and self.features is not None:
            frames, channels, height, width = self.features.shape[1:]
            flat = self.features[image].transpose(0, 1).reshape(channels, -1)
            return (self.embeds[layers, image, queries] @ flat).view(-1, frames, height, width)
        assert self.masks is not None
        return self.masks[layers, image, queries]
