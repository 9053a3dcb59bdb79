"""Losses of Mask2Former (arXiv 2112.01527, sections 3.3 and 4.1): classes of all queries, masks of matched queries.

Mask logits are computed for matched queries only, and compared with the ground truth at sampled points.

All predictions are compared together. Where a subclass overrides a loss, or the matcher is another one or has an
overridden method, or predictions differ in shape, they are compared one after another through the methods that other
projects know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from ..ops import point_losses, takes_points
from ..utils.overrides import as_written, extensible, unchanged
from .ground_truth import GroundTruth
from .mask_quality import quality_errors
from .matched_pairs import Assignment, Pairs
from .matcher import HungarianMatcher
from .object_regions import regions_of
from .outputs import same_shapes, without_earlier
from .point_sampling import Predictions, sample_maps, uncertain_points

LOSSES = ("labels", "masks")
# Mask logits that are processed together have about this many values.
_CHUNK = 2**28


@extensible
class SetCriterion(nn.Module):
    """Matching, then cross-entropy of classes and point-wise cross-entropy and dice loss of masks.

    Args:
        num_classes: K.
        matcher: a `HungarianMatcher`, or a module that returns pairs of queries and targets as its `forward` does.
        weight_dict: loss name -> weight; the caller multiplies (see `MaskFormer`).
        eos_coef: weight of the no-object class in the cross-entropy.
        losses: any of "labels", "masks", and names that a subclass adds in `get_loss`.
        num_points: P points per mask; `oversample_ratio` and `importance_sample_ratio` as in `uncertain_points`.
        deep_supervision: supervise the earlier predictions too.
        object_points: share of the points of a mask that are drawn in the region of its object, of those that are not
            selected by importance, see `object_regions`.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        losses: Sequence[str] = LOSSES,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        deep_supervision: bool = True,
        object_points: float = 0.0,
    ) -> None:
        super().__init__()
        unknown = set(losses) - set(LOSSES)
        if unknown and unchanged(self, SetCriterion, "get_loss"):
            raise ValueError(f"unknown losses {sorted(unknown)}; choose from {LOSSES}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.losses = list(losses)
        self.deep_supervision = deep_supervision
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.object_points = object_points
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Compute the unweighted losses.

        Args:
            outputs: `DecoderOutputs`, or a dictionary as for `Predictions.of`.
            targets: per image {"labels": (N,) int64 in [0, K), "masks": bool (N, H, W) or (N, T, H, W), floats are soft
                masks; optional "size": (H, W) of the padded batch as a tuple (default: that of the masks; a smaller one
                is ignored), "name": str for messages}; or a `Target`, which has the last two as attributes.

        Returns:
            {"loss_ce", "loss_mask", "loss_dice"} of the last prediction; with suffix _0, _1, ... of the earlier ones;
            and "loss_quality" where `outputs` has "pred_quality".
            Where `outputs` has "query_groups", they are the means over all groups of queries, each matched by itself;
            where it has "query_selection", that prediction is matched by itself too: {"loss_selection_ce",
            "loss_selection_mask", "loss_selection_dice"}, and "loss_selection_quality", with or without
            `deep_supervision`.
        """
        # Copies, because callers scale losses in place, which the views that unbind returns do not allow.
        return {name: value.clone() for name, value in self.views(outputs, targets).items()}

    def views(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Compute what `forward` returns, as views that cannot be changed in place."""
        groups = [self._supervised(group) for group in (outputs, *outputs.get("query_groups", ()))]
        selected = [outputs["query_selection"]] if "query_selection" in outputs else []
        if self._layer_by_layer() or not all(map(same_shapes, groups)):
            losses = _means([self._losses_by_layer(group, targets) for group in groups])
            return losses | _of_selection([self._losses_by_layer(each, targets) for each in selected])
        predictions = Predictions.of_groups([*groups, *selected])
        truth = GroundTruth.of(targets, predictions.logits.device)
        truth.check_frames(predictions.frames)
        matcher: Any = self.matcher
        with torch.autocast(predictions.logits.device.type, enabled=False):
            pairs = matcher.match_pairs(predictions, truth)
            terms: dict[str, Tensor] = {}
            if "labels" in self.losses:
                terms["loss_ce"] = self._class_loss(predictions.logits, truth, pairs)
            if "masks" in self.losses:
                count = self._count(targets, predictions.logits.device)
                sums = self._mask_losses(predictions, truth, pairs)
                terms |= {f"loss_{name}": value / count for name, value in sums.items()}
        of_selection = _of_selection([{name: values[-1] for name, values in terms.items()} for _ in selected])
        if selected:
            terms = {name: values[:-1] for name, values in terms.items()}
        if len(groups) > 1:
            terms = {name: values.unflatten(0, (len(groups), -1)).mean(0) for name, values in terms.items()}
        return _by_name(terms, 0) | of_selection

    def denoising_losses(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], queries: Sequence[Assignment]
    ) -> dict[str, Tensor]:
        """Compute the unweighted losses of denoising queries, each compared with its own object.

        Args:
            outputs: "denoising" of the decoder's outputs.
            targets: as for `forward`.
            queries: the object of each query, see `Denoising.draw`.

        Returns:
            {"loss_denoising_ce", "loss_denoising_mask", "loss_denoising_dice"}, means over the queries that have an
            object, of the last prediction; with suffix _1, _2, ... of the earlier ones, after the layers of `forward`.
        """
        predictions = Predictions.of(self._supervised(outputs))
        layers, _, size, _ = predictions.logits.shape
        device = predictions.logits.device
        truth = GroundTruth.of(targets, device)
        truth.check_frames(predictions.frames)
        pairs = Pairs.of([each.repeated(layers) for each in queries], truth.counts, size, device)
        count = _global_mean(sum(len(each.query) for each in queries), device)
        with torch.autocast(device.type, enabled=False):
            labels = truth.all_labels(device)[pairs.object]
            logits = predictions.logits.flatten(0, 2)[pairs.position]
            nll = F.cross_entropy(logits, labels, reduction="none") * self.empty_weight[labels]
            classes = nll.new_zeros(layers).index_add(0, pairs.layer, nll)
            sums = {"ce": classes, **self._mask_losses(predictions, truth, pairs)}
        return _by_name({f"loss_denoising_{name}": value / count for name, value in sums.items()}, 1)

    def _supervised(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return outputs if self.deep_supervision else without_earlier(outputs)

    def _layer_by_layer(self) -> bool:
        """Return whether losses or matching were replaced by forms that know one prediction at a time."""
        return (
            not as_written(self.matcher, HungarianMatcher, "forward", "memory_efficient_forward")
            or not unchanged(self, SetCriterion, "loss_labels", "loss_masks", "get_loss")
            or not set(self.losses) <= set(LOSSES)
        )

    def _losses_by_layer(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        layers = [outputs, *outputs.get("aux_outputs", ())]
        num_masks = float(self._count(targets, outputs["pred_logits"].device))
        losses: dict[str, Tensor] = {}
        for suffix, layer in zip(["", *(f"_{i}" for i in range(len(layers)))], layers, strict=False):
            indices = self.matcher(without_earlier(layer), targets)
            for name in self.losses:
                terms = self.get_loss(name, layer, targets, indices, num_masks)
                losses |= {f"{key}{suffix}": value for key, value in terms.items()}
        return losses

    def get_loss(
        self,
        loss: str,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        indices: Sequence[tuple[Tensor, Tensor]],
        num_masks: float,
    ) -> dict[str, Tensor]:
        """Compute one of `losses` of one prediction.

        Args:
            loss: its name.
            outputs: "pred_logits" and "pred_masks"; those of the last prediction have the "aux_outputs" too.
            targets: as for `forward`.
            indices: per image the indices of matched queries and of their targets.
            num_masks: number of objects, averaged over ranks, at least 1.

        Raises:
            ValueError: unknown name; a subclass adds names by overriding this method.
        """
        known = {"labels": self.loss_labels, "masks": self.loss_masks}
        if loss not in known:
            raise ValueError(f"unknown loss '{loss}'; {type(self).__name__}.get_loss has {', '.join(known)}")
        return known[loss](outputs, targets, indices, num_masks)

    def loss_labels(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        indices: Sequence[tuple[Tensor, Tensor]],
        num_masks: float,
    ) -> dict[str, Tensor]:
        """Compute {"loss_ce"} of one prediction; arguments as for `get_loss`."""
        logits = outputs["pred_logits"].float()[None]
        truth = GroundTruth.of(targets, logits.device)
        return {"loss_ce": self._class_loss(logits, truth, _pairs(indices, truth, logits))[0]}

    def loss_masks(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        indices: Sequence[tuple[Tensor, Tensor]],
        num_masks: float,
    ) -> dict[str, Tensor]:
        """Compute {"loss_mask", "loss_dice"} of one prediction; arguments as for `get_loss`.

        Where `outputs` has "pred_quality", "loss_quality" too.
        """
        predictions = Predictions.of(without_earlier(outputs))
        truth = GroundTruth.of(targets, predictions.logits.device)
        with torch.autocast(predictions.logits.device.type, enabled=False):
            pairs = _pairs(indices, truth, predictions.logits)
            sums = self._mask_losses(predictions, truth, pairs)
        return {f"loss_{name}": value[0] / num_masks for name, value in sums.items()}

    def _get_src_permutation_idx(self, indices: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return image and query of each matched pair, (M,) each."""
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(indices)])
        return image, torch.cat([query for query, _ in indices])

    def _get_tgt_permutation_idx(self, indices: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return image and target of each matched pair, (M,) each."""
        image = torch.cat([torch.full_like(target, i) for i, (_, target) in enumerate(indices)])
        return image, torch.cat([target for _, target in indices])

    @staticmethod
    def _count(targets: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        return _global_mean(sum(len(target["labels"]) for target in targets), device)

    def _class_loss(self, logits: Tensor, truth: GroundTruth, pairs: Pairs) -> Tensor:
        """Return the (L,) weighted cross-entropy; the target of unmatched queries is no-object."""
        layers = len(logits)
        class_targets = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        flat = class_targets.view(-1)
        flat[pairs.position] = truth.all_labels(logits.device)[pairs.object]
        nll = F.cross_entropy(logits.flatten(0, 2), flat, reduction="none").view(layers, -1)
        weight = self.empty_weight[flat].view(layers, -1)
        return (nll * weight).sum(1) / weight.sum(1)

    def _mask_losses(self, predictions: Predictions, truth: GroundTruth, pairs: Pairs) -> dict[str, Tensor]:
        """Return (L,) sums over matched masks (and frames): "mask", cross-entropy; "dice"; "quality" if predicted."""
        device, frames, quality = predictions.logits.device, predictions.frames, predictions.quality
        if quality is not None and frames > 1:
            raise ValueError("the quality of masks is learned from images, not from clips")
        regions = regions_of(truth) if self.object_points else None
        zeros = predictions.logits.new_zeros(len(predictions.logits))
        sums = {"mask": zeros, "dice": zeros} | ({} if quality is None else {"quality": zeros})
        first = 0
        for sizes in self._groups(pairs.sizes, predictions):
            part = slice(first, first + sum(sizes))
            first = part.stop
            layer, rows = pairs.layer[part], pairs.object[part]
            if frames > 1:
                layer = layer.repeat_interleave(frames)
                rows = (rows[:, None] * frames + torch.arange(frames, device=device)).flatten()
            logits = predictions.matched(pairs.position[part], sizes)
            logits = logits.flatten(0, 1)
            terms = dict(zip(("mask", "dice"), self._compare(logits, truth, rows, regions), strict=True))
            if quality is not None:
                of_pairs = quality.flatten().index_select(0, pairs.position[part])
                terms["quality"] = quality_errors(of_pairs, logits, truth, rows)
            sums = {name: total.index_add(0, layer, terms[name]) for name, total in sums.items()}
        return sums

    def _groups(self, sizes: Sequence[int], predictions: Predictions) -> Iterator[list[int]]:
        """Yield how many pairs of each image are processed together: few kernels, bounded memory.

        Args:
            sizes: number of pairs of each image; they are processed in order.
            predictions: their maps say how much memory a pair takes.
        """
        maps = predictions.features if predictions.features is not None else predictions.masks
        assert maps is not None
        kernels = takes_points(maps) and unchanged(self, SetCriterion, "_compare")
        points = 2 * self.num_points if kernels else int(4 * self.num_points * self.oversample_ratio)
        limit = max(1, _CHUNK // (maps.shape[-2] * maps.shape[-1] + points))
        group, remaining = [0] * len(sizes), limit
        for image, size in enumerate(sizes):
            for first in range(0, size, limit):
                part = min(limit, size - first)
                if part > remaining:
                    yield group
                    group, remaining = [0] * len(sizes), limit
                group[image] = part
                remaining -= part
        yield group

    def _compare(
        self, logits: Tensor, truth: GroundTruth, rows: Tensor, regions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (M,) cross-entropy and dice loss of mask logits (M, H, W) and masks `rows` of the bank, at points."""
        ratios = self.oversample_ratio, self.importance_sample_ratio
        drawn_in = () if regions is None else (regions[rows], self.object_points)
        points = uncertain_points(logits.detach(), self.num_points, *ratios, *drawn_in)
        if takes_points(logits):
            return point_losses(logits, points, truth.bank.data, truth.bank.table, rows, truth.size)
        expected = truth.bank.sample(rows, points, truth.size)
        predicted = sample_maps(logits[:, None], points)[:, 0]
        return _cross_entropy(predicted, expected), _dice(predicted, expected)


def _cross_entropy(logits: Tensor, expected: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, expected, reduction="none").mean(1)


def _dice(logits: Tensor, expected: Tensor) -> Tensor:
    sigmoid = logits.sigmoid()
    return 1 - (2 * (sigmoid * expected).sum(1) + 1) / (sigmoid.sum(1) + expected.sum(1) + 1)


def sigmoid_ce_loss(inputs: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Return the sum of the mean cross-entropies of mask logits and masks at points, (M, P) each, over `num_masks`."""
    return _cross_entropy(inputs, targets).sum() / num_masks


def dice_loss(inputs: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Return the sum of the dice losses of mask logits and masks at points, (M, P) each, over `num_masks`."""
    return _dice(inputs.flatten(1), targets.flatten(1)).sum() / num_masks


# Names under which programs import compiled forms; these functions need no compilation.
sigmoid_ce_loss_jit = sigmoid_ce_loss
dice_loss_jit = dice_loss


def calculate_uncertainty(logits: Tensor) -> Tensor:
    """Return the uncertainty of mask logits (M, 1, ...), largest where they are 0, as PointRend's sampling wants it."""
    if logits.shape[1] != 1:
        raise ValueError(f"mask logits must have one channel, got {logits.shape[1]}")
    return -logits.abs()


def _by_name(terms: Mapping[str, Tensor], first: int) -> dict[str, Tensor]:
    """Return losses (L,), that of the last prediction first, by name; the earlier ones are numbered from `first`."""
    return {
        f"{name}_{i + first - 1}" if i else name: value
        for name, values in terms.items()
        for i, value in enumerate(values.unbind(0))
    }


def _of_selection(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the losses of the prediction of selected tokens, if there is one, under their own names."""
    return {selection_name(name): value for each in losses for name, value in each.items()}


def selection_name(name: str) -> str:
    """Return the name of a loss of selected tokens: "loss_selection_ce" for "loss_ce"."""
    return f"loss_selection_{name.removeprefix('loss_')}"


def _means(groups: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each loss over groups of queries."""
    if len(groups) == 1:
        return groups[0]
    return {name: torch.stack([losses[name] for losses in groups]).mean(0) for name in groups[0]}


def _pairs(indices: Sequence[tuple[Tensor, Tensor]], truth: GroundTruth, logits: Tensor) -> Pairs:
    """Return the pairs of one prediction, whose class logits are (1, B, Q, K + 1), given as `indices` per image."""
    on_cpu = [(torch.as_tensor(i).cpu().numpy(), torch.as_tensor(j).cpu().numpy()) for i, j in indices]
    assignments = [Assignment(np.zeros_like(query), query, target) for query, target in on_cpu]
    return Pairs.of(assignments, truth.counts, logits.shape[2], logits.device)


def _global_mean(count: int, device: torch.device) -> Tensor:
    """Return the mean of `count` over all ranks, at least 1; every rank must call this, even without objects."""
    total = torch.full((), float(count), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)
