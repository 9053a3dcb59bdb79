"""Losses of Mask2Former (arXiv 2112.01527, sections 3.3 and 4.1): classes of all queries, masks of matched queries.

Mask logits are computed for matched queries only, and compared with the ground truth at sampled points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from .device_transfer import to_device
from .matcher import Assignment, HungarianMatcher
from .point_sampling import MaskBank, Predictions, sample_maps, uncertain_points

LOSSES = ("labels", "masks")
# Mask logits that are processed together have about this many values.
_CHUNK = 2**28


class SetCriterion(nn.Module):
    """Matching, then cross-entropy of classes and point-wise cross-entropy and dice loss of masks.

    Args:
        num_classes: K.
        matcher: matches queries to ground truth.
        weight_dict: loss name -> weight; the caller multiplies (see `MaskFormer`).
        eos_coef: weight of the no-object class in the cross-entropy.
        losses: any of "labels", "masks".
        num_points: P points per mask; `oversample_ratio` and `importance_sample_ratio` as in `uncertain_points`.
        deep_supervision: supervise the earlier predictions too.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        losses: Sequence[str] = LOSSES,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        unknown = set(losses) - set(LOSSES)
        if unknown:
            raise ValueError(f"unknown losses {sorted(unknown)}; choose from {LOSSES}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.losses = tuple(losses)
        self.deep_supervision = deep_supervision
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Compute the unweighted losses.

        Args:
            outputs: outputs of a decoder in training (see `Predictions.of`).
            targets: per image {"labels": (N,) int64 in [0, K), "masks": bool (N, H, W) or (N, T, H, W);
                optional "size": (H, W) of the padded batch (default: that of the masks), "name": for messages}.

        Returns:
            {"loss_ce", "loss_mask", "loss_dice"} of the last prediction; with suffix _0, _1, ... of the earlier ones.
        """
        predictions = Predictions.of(outputs if self.deep_supervision else {**outputs, "aux_outputs": []})
        device = predictions.logits.device
        targets = [_with_frames(t) for t in targets]
        size = next((t["size"] for t in targets if "size" in t), None) or _largest(targets)
        bank = MaskBank.of([t["masks"].flatten(0, 1) for t in targets], device)
        with torch.autocast(device.type, enabled=False):
            assignments = self.matcher(predictions, targets, bank, size)
            terms: dict[str, Tensor] = {}
            if "labels" in self.losses:
                terms["loss_ce"] = self._class_loss(predictions.logits, targets, assignments)
            if "masks" in self.losses:
                count = _global_mean(sum(len(t["labels"]) for t in targets), device)
                cross_entropy, dice = self._mask_losses(predictions, targets, assignments, bank, size)
                terms["loss_mask"], terms["loss_dice"] = cross_entropy / count, dice / count
        suffixes = ["", *(f"_{i}" for i in range(len(predictions.logits) - 1))]
        return {f"{k}{s}": v for k, values in terms.items() for s, v in zip(suffixes, values.unbind(0), strict=True)}

    def _class_loss(
        self, logits: Tensor, targets: Sequence[Mapping[str, Any]], assignments: Sequence[Assignment]
    ) -> Tensor:
        """Return the (L,) weighted cross-entropy; the target of unmatched queries is no-object."""
        layers, _, queries, _ = logits.shape
        class_targets = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        flat = class_targets.view(-1)
        for image, (target, pairs) in enumerate(zip(targets, assignments, strict=True)):
            positions = (pairs.layer * len(targets) + image) * queries + pairs.query
            index = to_device(torch.from_numpy(np.stack((positions, pairs.target))), logits.device)
            flat[index[0]] = target["labels"][index[1]]
        nll = F.cross_entropy(logits.flatten(0, 2), flat, reduction="none").view(layers, -1)
        weight = self.empty_weight[flat].view(layers, -1)
        return (nll * weight).sum(1) / weight.sum(1)

    def _mask_losses(
        self,
        predictions: Predictions,
        targets: Sequence[Mapping[str, Any]],
        assignments: Sequence[Assignment],
        bank: MaskBank,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Return (L,) sums over matched masks (and frames) of cross-entropy and dice loss."""
        device = predictions.logits.device
        cross_entropy = predictions.logits.new_zeros(len(predictions.logits))
        dice = torch.zeros_like(cross_entropy)
        for group in self._groups(self._pairs(targets, assignments), predictions):
            table = to_device(torch.from_numpy(np.concatenate([pairs for _, pairs in group], axis=1)), device)
            sizes = [pairs.shape[1] for _, pairs in group]
            logits = [
                predictions.matched(image, layer, query)
                for (image, _), (layer, query, _) in zip(group, table.split(sizes, dim=1), strict=True)
            ]
            frames = logits[0].shape[1]
            rows = (table[2][:, None] + torch.arange(frames, device=device)).flatten()
            ce_rows, dice_rows = self._compare(torch.cat(logits).flatten(0, 1), bank, rows, size)
            layer = table[0].repeat_interleave(frames) if frames > 1 else table[0]
            cross_entropy = cross_entropy.index_add(0, layer, ce_rows)
            dice = dice.index_add(0, layer, dice_rows)
        return cross_entropy, dice

    @staticmethod
    def _pairs(
        targets: Sequence[Mapping[str, Any]], assignments: Sequence[Assignment]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of each image, and (3, M) layer, query and first row in the bank of its matched pairs."""
        first = 0
        for image, (target, pairs) in enumerate(zip(targets, assignments, strict=True)):
            count, frames = target["masks"].shape[:2]
            yield image, np.stack((pairs.layer, pairs.query, first + pairs.target * frames))
            first += count * frames

    def _groups(
        self, pairs: Iterator[tuple[int, np.ndarray]], predictions: Predictions
    ) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Yield groups of pairs of one or more images that are processed together: few kernels, bounded memory.

        An image without pairs is part of a group too, so that its zero losses stay attached to the graph.
        """
        maps = predictions.features if predictions.features is not None else predictions.masks
        assert maps is not None
        values = maps.shape[-2] * maps.shape[-1] + int(4 * self.num_points * self.oversample_ratio)
        limit = max(1, _CHUNK // values)
        group: list[tuple[int, np.ndarray]] = []
        remaining = limit
        for image, table in pairs:
            for part in np.split(table, range(limit, table.shape[1], limit), axis=1):
                if part.shape[1] > remaining:
                    yield group
                    group, remaining = [], limit
                group.append((image, part))
                remaining -= part.shape[1]
        yield group

    def _compare(self, logits: Tensor, bank: MaskBank, rows: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return (M,) cross-entropy and dice loss of mask logits (M, H, W) and masks `rows` of the bank, at points."""
        points = uncertain_points(logits.detach(), self.num_points, self.oversample_ratio, self.importance_sample_ratio)
        expected = bank.sample(rows, points, size)
        predicted = sample_maps(logits[:, None], points)[:, 0]
        cross_entropy = F.binary_cross_entropy_with_logits(predicted, expected, reduction="none").mean(1)
        sigmoid = predicted.sigmoid()
        dice = 1 - (2 * (sigmoid * expected).sum(1) + 1) / (sigmoid.sum(1) + expected.sum(1) + 1)
        return cross_entropy, dice


def _with_frames(target: Mapping[str, Any]) -> dict[str, Any]:
    masks = target["masks"]
    return {**target, "masks": masks[:, None] if masks.dim() == 3 else masks}


def _largest(targets: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    return max(t["masks"].shape[-2] for t in targets), max(t["masks"].shape[-1] for t in targets)


def _global_mean(count: int, device: torch.device) -> Tensor:
    """Return the mean of `count` over all ranks, at least 1; every rank must call this, even without objects."""
    total = torch.full((), float(count), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)
