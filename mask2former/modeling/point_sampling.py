"""Predictions and ground truth of a training batch, sampled at points (PointRend, arXiv 1912.08193).

Points are (x, y) in [0, 1] of the padded image; the center of pixel i is (i + 0.5) / size. Sampling is bilinear, and
zero outside. Indices, for B images of T frames, L predictions and Q queries:

    Predictions                   Assignment of image b           MaskBank
    logits (L, B, Q, K + 1)       M pairs, each of                the masks of all images, frame by frame
                                                                  row 0   image 0, target 0, frame 0
      layer l ------------------- layer  (0: the last layer,      row 1   image 0, target 0, frame 1
      query q ------------------- query      l: layer l - 1)        ...
                                  target ---------------------->  row = first row of image b + target * T + frame
                                                                    ...
    matched(positions in (L, B, Q))                               sample(row, points)
      -> mask logits (M, T, H, W)   == compared at points ==        -> (M * T, P) in [0, 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import draw_points, sample_masks, takes_points
from ..ops.mask_sampling import compiled
from ..structures.masks import boxes_from_masks
from .device_transfer import to_device
from .grouped_products import Halves, products
from .half_products import are_halves, in_two, product, twice
from .outputs import MaskLogits, Row, mask_logits, unread

# Samples that are read together; bounds the memory of index arithmetic.
_CHUNK = 2**24


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps (N, C, H, W) bilinearly at points (N, P, 2) in [0, 1]; returns (N, C, P)."""
    grid = (2 * points[:, :, None].to(maps.dtype)).sub_(1)  # in place: there are many candidates for the losses
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


def points_in(boxes: Tensor, points: Tensor) -> Tensor:
    """Move points (..., 2) from the unit square into boxes (..., 4): left, top, right, bottom."""
    low, high = boxes.chunk(2, -1)
    return low + points * (high - low)


@dataclass
class MaskBank:
    """Masks of different sizes in one flat buffer, sampled without padding, copying or converting them.

    Attributes:
        data: (sum of H * W,) uint8, or float32 of soft masks, concatenated masks in row-major order.
        table: (3, N) int64, offset, height and width of each mask.
        groups: number, height and width of the masks that were given together, in order.
    """

    data: Tensor
    table: Tensor
    groups: Sequence[tuple[int, int, int]] = ()

    @classmethod
    def of(cls, masks: Sequence[Tensor], device: torch.device) -> MaskBank:
        """Build from groups of masks (n, H, W); masks are numbered through the groups in order.

        Nonzero integers belong to the object; numbers with fractions are soft masks, in [0, 1], and keep their values.
        """
        rows = [(m.shape[-2], m.shape[-1]) for m in masks for _ in range(m.shape[0])]
        sizes = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
        area = sizes.prod(1)
        table = torch.stack((area.cumsum(0) - area, sizes[:, 0], sizes[:, 1]))
        table = to_device(table, device)
        if any(m.is_floating_point() for m in masks):
            flat = [m.to(device, torch.float32, non_blocking=True).flatten() for m in masks]
        else:
            binary = [m if m.dtype == torch.bool else m != 0 for m in masks]
            flat = [m.to(device, non_blocking=True).contiguous().view(torch.uint8).flatten() for m in binary]
        data = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.uint8, device=device)
        return cls(data, table, [(len(m), m.shape[-2], m.shape[-1]) for m in masks])

    def boxes(self) -> Tensor:
        """Return the (N, 4) bounding boxes in pixels, left, top, right and bottom; zeros where a mask is empty.

        Soft masks are cut at one half. Waits for nothing.
        """
        binary = self.data.view(torch.bool) if self.data.dtype == torch.uint8 else self.data >= 0.5
        parts = binary.split([count * height * width for count, height, width in self.groups])
        boxes = [boxes_from_masks(part.view(shape)) for part, shape in zip(parts, self.groups, strict=True)]
        return torch.cat(boxes) if boxes else torch.zeros(0, 4, device=self.data.device)

    def sample(self, index: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Sample the masks `index` at points of a padded image; values are in [0, 1].

        Args:
            index: (M,) int64 indices of masks.
            points: (M, P, 2), or (1, P, 2) shared by all.
            size: (H, W) of the padded image that the points refer to; masks lie in its upper left corner.

        Returns:
            (M, P) float32.
        """
        return sample_masks(self.data, self.table, index, points, size)

    def sample_shared(self, group: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Sample all masks at the points that their group shares.

        Args:
            group: (N,) int64 row of `points` for each mask.
            points: (G, P, 2); size: as in `sample`.

        Returns:
            (N, P) float32.
        """
        index = torch.arange(len(group), device=group.device)
        # Without a kernel the arithmetic of indices takes memory.
        chunk = max(1, len(group) if compiled(self.data.device.type) else _CHUNK // points.shape[1])
        parts = [
            sample_masks(self.data, self.table, index[i : i + chunk], points, size, group[i : i + chunk])
            for i in range(0, len(group), chunk)
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else points.new_zeros(0, points.shape[1])


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
    regions: Tensor | None = None,
    share: float = 0.0,
) -> Tensor:
    """Draw points for the mask losses: mostly where the prediction is least certain, the rest uniformly.

    Args:
        logits: (N, H, W) before the sigmoid.
        num_points: P.
        oversample_ratio: number of candidates as a multiple of P.
        importance_ratio: fraction of P selected from the candidates with the smallest |logit|.
        regions: (N, 4) boxes in [0, 1], in which a share of the rest is drawn, see `object_regions`; or None.
        share: that share.

    Returns:
        (N, P, 2).
    """
    candidates = int(num_points * oversample_ratio)
    important = int(importance_ratio * num_points)
    if takes_points(logits):
        in_regions = 0 if regions is None else int(share * (num_points - important))
        return draw_points(logits, num_points, candidates, important, regions, in_regions)
    points = torch.rand(len(logits), candidates, 2, device=logits.device)
    # Uncertainty of the sampled logits; sampling an uncertainty map would miss zero crossings.
    certainty = sample_maps(logits[:, None], points)[:, 0].abs()
    selected = certainty.topk(important, dim=1, largest=False, sorted=False).indices
    points = points.gather(1, selected[..., None].expand(-1, -1, 2))
    uniform = torch.rand(len(logits), num_points - important, 2, device=logits.device)
    if regions is not None:
        inside = uniform[:, : int(share * uniform.shape[1])]
        inside.copy_(points_in(regions[:, None], inside))
    return torch.cat((points, uniform), dim=1)


@dataclass
class Predictions:
    """L predictions, that of the last layer first, then those of the earlier layers in order.

    Attributes:
        logits: (L, B, Q, K + 1) class logits.
        embeds: (L, B, Q, C) query embeddings, whose products with `features` are the mask logits; or None.
        features: (B, T, C, H4, W4), or None.
        masks: (L, B, Q, T, H4, W4) mask logits of decoders that compute all of them; or None.
        quality: (L, B, Q) predicted quality of the masks, before the sigmoid; or None.
        halves: `embeds` and `features` as the bf16 numbers that they were before, see `half_products`; or None.
    """

    logits: Tensor
    embeds: Tensor | None = None
    features: Tensor | None = None
    masks: Tensor | None = None
    quality: Tensor | None = None
    halves: Halves | None = None

    @classmethod
    def of(cls, outputs: Mapping[str, Any]) -> Predictions:
        """Build from the outputs of a decoder: `DecoderOutputs`, or a dictionary of tensors.

        Without "pred_masks", a dictionary has "pred_embeds" (B, Q, C), and the last prediction "mask_features"
        (B, T, C, H4, W4); "aux_outputs" has earlier predictions. All may have "pred_quality" (B, Q).
        """
        layers: list[Mapping[str, Any]] = [outputs, *outputs.get("aux_outputs", ())]
        logits = _stacked(layers, "pred_logits").float()
        quality = _stacked(layers, "pred_quality").float() if "pred_quality" in outputs else None
        if "pred_masks" not in outputs:
            return cls._of_products(logits, _stacked(layers, "pred_embeds"), outputs["mask_features"], quality)
        products = [unread(layer, "pred_masks") for layer in layers]
        if all(isinstance(product, MaskLogits) for product in products):
            embeds = torch.stack([product.embeds for product in products])
            return cls._of_products(logits, embeds, products[0].features, quality)
        masks = _stacked(layers, "pred_masks").float()
        return cls(logits, masks=masks[:, :, :, None] if masks.dim() == 5 else masks, quality=quality)

    @classmethod
    def _of_products(cls, logits: Tensor, embeds: Tensor, features: Tensor, quality: Tensor | None) -> Predictions:
        halves = (embeds.detach(), features.detach()) if are_halves(embeds, features) else None
        return cls(logits, embeds.float(), features.float(), quality=quality, halves=halves)

    @classmethod
    def of_groups(cls, groups: Sequence[Mapping[str, Any]]) -> Predictions:
        """Build from the outputs of groups of queries with L predictions each: all predictions, group by group."""
        parts = [cls.of(outputs) for outputs in groups]
        if len(parts) == 1:
            return parts[0]
        logits = torch.cat([part.logits for part in parts])
        qualities = [part.quality for part in parts if part.quality is not None]
        quality = torch.cat(qualities) if len(qualities) == len(parts) else None
        embeds = [part.embeds for part in parts if part.embeds is not None]
        if len(embeds) == len(parts):
            halves = [part.halves for part in parts if part.halves is not None]
            joined = (torch.cat([each for each, _ in halves]), halves[0][1]) if len(halves) == len(parts) else None
            return cls(logits, torch.cat(embeds), parts[0].features, quality=quality, halves=joined)
        # Somebody has read the mask logits of a group, which count from then on.
        return cls(logits, masks=torch.cat([part._all_masks() for part in parts]), quality=quality)

    def _all_masks(self) -> Tensor:
        if self.masks is not None:
            return self.masks
        assert self.embeds is not None and self.features is not None
        return torch.stack([mask_logits(embeds, self.features) for embeds in self.embeds])

    @property
    def frames(self) -> int:
        """Return T."""
        if self.features is not None:
            return self.features.shape[1]
        assert self.masks is not None
        return self.masks.shape[3]

    def sample(self, points: Tensor, images: int) -> Iterator[Tensor]:
        """Yield mask logits of `images` images at a time: (b, L * Q, T * P), all queries at points (B, P, 2)."""
        if self.embeds is not None and self.features is not None:
            frames = self.features.shape[1]
            per_frame = points.repeat_interleave(frames, dim=0)
            sampled = sample_maps(self.features.flatten(0, 1), per_frame).unflatten(0, (-1, frames))  # (B, T, C, P)
            values = sampled.transpose(1, 2).flatten(2)
            halves = None if torch.is_grad_enabled() else self.halves  # which have no gradients
            embeds = (self.embeds if halves is None else halves[0]).transpose(0, 1).flatten(1, 2)
            for rows, columns in zip(embeds.split(images), values.split(images), strict=True):
                yield rows @ columns if halves is None else product(twice(rows, 2), in_two(columns, 1))
            return
        assert self.masks is not None
        frames = self.masks.shape[3]
        for masks, places in zip(self.masks.split(images, dim=1), points.split(images), strict=True):
            maps = masks.transpose(0, 1).flatten(1, 3)  # (b, L Q T, H, W)
            yield sample_maps(maps, places).unflatten(1, (-1, frames)).flatten(2)

    def matched(self, position: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return mask logits (M, T, H, W) of selected queries.

        Args:
            position: (M,) int64 indices in (L, B, Q), flattened; image by image.
            sizes: number of them in each image.
        """
        if self.embeds is not None and self.features is not None:
            frames, _, height, width = self.features.shape[1:]
            rows = self.embeds.flatten(0, 2).index_select(0, position)
            maps = self.features.transpose(1, 2)
            if self.halves is None:
                logits = products(rows, maps.flatten(2), sizes)
            else:
                embeds, features = self.halves
                halves = embeds.flatten(0, 2).index_select(0, position), features.transpose(1, 2).flatten(2)
                logits = products(rows, maps, sizes, halves)  # of several frames, flat fp32 maps would be a copy
            return logits.view(-1, frames, height, width)
        assert self.masks is not None
        return self.masks.flatten(0, 2).index_select(0, position)


def _stacked(layers: Sequence[Mapping[str, Any]], key: str) -> Tensor:
    """Return (L, ...) of the layers' entries (...), without cutting apart and joining what already is a stack."""
    rows = [unread(layer, key) for layer in layers]
    if all(isinstance(row, Row) and row.index == i and row.stack is rows[0].stack for i, row in enumerate(rows)):
        return rows[0].stack[: len(rows)]
    return torch.stack([layer[key] for layer in layers])
