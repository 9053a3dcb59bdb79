"""Post-processing with fixed shapes: results have room for the largest number of objects, thresholds are inputs.

The numbers are those of `modeling.postprocess`, for results that have the size of the network's input. What is outside
`valid_size` is padding, which belongs to no result.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


class Part(nn.Module):
    """Base class: logits to results.

    Attributes:
        output_names: names of the tensors that `forward` returns.
        thresholds: name and default of each threshold that `forward` takes.
        takes_quality: whether `forward` takes the predicted quality of masks, before the sigmoid, last.
    """

    output_names: tuple[str, ...] = ()
    takes_quality = False

    def __init__(self, thresholds: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.thresholds = dict(thresholds or {})


class Logits(Part):
    """No post-processing."""

    def forward(self, class_logits: Tensor, mask_logits: Tensor, size: Size) -> tuple[Tensor, ...]:
        """Return nothing: the logits are outputs in any case."""
        return ()


def valid_pixels(valid_size: Tensor, size: Size) -> Tensor:
    """Return bool (B, H, W), True inside the image, whose height and width are rows of `valid_size` (B, 2)."""
    rows = torch.arange(size[0], device=valid_size.device) < valid_size[:, :1]
    columns = torch.arange(size[1], device=valid_size.device) < valid_size[:, 1:]
    return rows[:, :, None] & columns[:, None]


def resized(mask_logits: Tensor, size: Size) -> Tensor:
    """Resize mask logits (B, N, H4, W4) to (B, N, H, W)."""
    return F.interpolate(mask_logits, size, mode="bilinear", align_corners=False)


class Instances(Part):
    """The best (query, class) pairs, as many as `capacity`, scored by class score x mean mask probability in the mask.

    Args:
        capacity: N; at most Q x K are used.
        kept_classes: bool (K,), False for classes that are dropped after the selection.
        score_threshold: default of the threshold.
        mask_scores: whether the mask is part of the score, which it is not in clips.
        quality_power: exponent of the predicted quality of masks in the score; 0: it is not part of it.
    """

    output_names = ("scores", "classes", "masks")
    kept_classes: Tensor

    def __init__(
        self,
        capacity: int,
        kept_classes: Tensor,
        score_threshold: float,
        mask_scores: bool,
        quality_power: float = 0.0,
    ) -> None:
        super().__init__({"score_threshold": score_threshold})
        self.capacity, self.mask_scores, self.quality_power = capacity, mask_scores, quality_power
        self.takes_quality = quality_power > 0
        self.register_buffer("kept_classes", kept_classes)

    def forward(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        size: Size,
        valid_size: Tensor,
        score_threshold: Tensor,
        quality_logits: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Select instances.

        Returns:
            Scores (B, N) float, classes (B, N) int64 and masks (B, N, H, W), or (B, N, T, H, W), bool. Rows without an
            object have score 0, class -1 and an empty mask; best class scores come first.
        """
        scores = class_logits.softmax(-1)[..., :-1]
        if quality_logits is not None:
            scores = scores * (quality_logits.sigmoid() ** self.quality_power)[..., None]
        classes = scores.shape[-1]
        best, index = scores.flatten(1).topk(min(self.capacity, scores.shape[1] * classes))
        labels, queries = index % classes, index // classes
        clip = mask_logits.dim() == 5
        shape = mask_logits.shape[2:]
        rows = mask_logits.flatten(2).gather(1, queries[:, :, None].expand(-1, -1, int(shape.numel())))
        small = rows.unflatten(2, shape)
        logits = resized(small.flatten(1, 2) if clip else small, size)
        masks = (logits > 0) & valid_pixels(valid_size, size)[:, None]
        if self.mask_scores:
            area = masks.float().flatten(2).sum(-1)
            best = best * ((logits.sigmoid() * masks).flatten(2).sum(-1) / (area + 1e-6))
        if clip:
            masks = masks.unflatten(1, (-1, shape[0]))
        keep = self.kept_classes[labels] & (best >= score_threshold)
        masks = masks & (keep[:, :, None, None, None] if clip else keep[:, :, None, None])
        return torch.where(keep, best, 0.0), torch.where(keep, labels, -1), masks


class Panoptic(Part):
    """Each pixel goes to the query with the largest class score x mask probability (MaskFormer, section 3.4).

    Args:
        things: bool (K,), which classes are things; segments of another class are one.
        object_mask_threshold, overlap_threshold: defaults of the thresholds, see `Settings`.
    """

    output_names = ("segment_map", "segment_scores", "segment_classes", "segment_areas")
    things: Tensor

    def __init__(self, things: Tensor, object_mask_threshold: float, overlap_threshold: float) -> None:
        super().__init__({"object_mask_threshold": object_mask_threshold, "overlap_threshold": overlap_threshold})
        self.register_buffer("things", things)

    def forward(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        size: Size,
        valid_size: Tensor,
        object_mask_threshold: Tensor,
        overlap_threshold: Tensor,
    ) -> tuple[Tensor, ...]:
        """Make a map of segments.

        Returns:
            The map int64 (B, H, W), 0 where no segment is; of segment i + 1, in row i, score (B, Q) float, class (B, Q)
            int64 and area in pixels (B, Q) int64; rows without a segment have class -1 and zeros.
        """
        scores, labels = class_logits.softmax(-1).max(-1)
        no_object = class_logits.shape[-1] - 1
        keep = (labels != no_object) & (scores > object_mask_threshold)
        valid = valid_pixels(valid_size, size)
        probability = resized(mask_logits, size).sigmoid()
        area = ((probability >= 0.5) & valid[:, None]).float().flatten(2).sum(-1)  # exact up to 2 ** 24 pixels
        weight = torch.where(keep, scores, -1.0)
        winner = (probability * weight[:, :, None, None]).argmax(1)
        candidate = keep.gather(1, winner.flatten(1)).view(winner.shape) & valid
        inside = candidate & (probability.gather(1, winner[:, None])[:, 0] >= 0.5)
        won, visible = (_counts(winner, counted, scores) for counted in (candidate, inside))
        ok = keep & (won > 0) & (area > 0) & (visible > 0) & (won / area.clamp(min=1.0) >= overlap_threshold)
        ids, first = self._ids(labels, ok)
        segment_map = ids.gather(1, winner.flatten(1)).view(winner.shape) * inside
        number = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None]
        part_of = (ids[:, None] == number) & ok[:, None]  # (B, segments, Q)
        lead = part_of & first[:, None]
        lead_labels = torch.where(lead, labels[:, None], 0).sum(-1)
        classes = torch.where(lead.any(-1), lead_labels, -1)
        lead_scores = torch.where(lead, scores[:, None], 0.0).sum(-1)
        areas = torch.where(part_of, visible[:, None], 0.0).sum(-1).long()
        return segment_map, lead_scores, classes, areas

    def _ids(self, labels: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
        """Return the segment id of each query (B, Q), 0 for none, and whether it is the first one of its segment."""
        queries = labels.shape[1]
        position = torch.arange(queries, device=labels.device)
        same = (labels[:, :, None] == labels[:, None]) & ok[:, None]
        earliest = torch.where(same, position, queries - 1).amin(-1)
        thing = self.things[labels.clamp(max=len(self.things) - 1)]
        lead = torch.where(thing, position, earliest)
        first = ok & (lead == position)
        return first.long().cumsum(1).gather(1, lead) * ok, first


def _counts(winner: Tensor, counted: Tensor, like: Tensor) -> Tensor:
    """Return of each query (B, Q) how many pixels it won, (B, H, W) indices, of those that are counted."""
    zeros = torch.zeros_like(like)
    return zeros.scatter_add(1, winner.flatten(1), counted.flatten(1).to(like.dtype))


class Semantic(Part):
    """The class with the largest sum over queries of class score x mask probability (MaskFormer, section 3.4)."""

    output_names = ("labels",)

    def forward(self, class_logits: Tensor, mask_logits: Tensor, size: Size, valid_size: Tensor) -> tuple[Tensor, ...]:
        """Return the best class of each pixel, int64 (B, H, W); -1 in the padding."""
        scores = class_logits.softmax(-1)[..., :-1]
        masks = resized(mask_logits, size).sigmoid().flatten(2)
        labels = torch.bmm(scores.transpose(1, 2), masks).argmax(1).unflatten(1, size)
        return (torch.where(valid_pixels(valid_size, size), labels, -1),)
