"""Bipartite matching of queries and ground-truth objects (DETR, arXiv 2005.12872), on sampled points.

All predictions of an iteration are matched together: masks are read once. `match_layers` copies costs to the CPU, once;
`match_pairs` lets a GPU solve the assignment, and waits for nothing. Called as a module, the matcher matches one
prediction.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..ops import assigns_on, linear_assignment, matching_terms, takes_terms
from ..ops.assignment import WORST
from ..utils.overrides import extensible, unchanged
from .device_transfer import HostCopy, to_cpu, to_device, to_device_together
from .ground_truth import GroundTruth
from .half_products import product, twice
from .matched_pairs import Assignment, Pairs
from .object_regions import move_to_objects
from .outputs import without_earlier
from .point_sampling import Predictions

logger = logging.getLogger(__name__)

# Mask logits that a GPU compares with all objects together have about this many values.
_CHUNK = 2**26
# Products with fewer results leave a GPU idle, and sums over fewer points are not worth splitting.
_FEW_RESULTS, _LONG_SUM = 2**20, 1024
# Iterations that a GPU may be behind when their costs are checked.
_MOST_UNCHECKED = 16


def batch_sigmoid_ce_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy (Q, N) of mask logits `inputs` (Q, P) and each of the masks `targets` (N, P).

    All may have the same leading dimensions.
    """
    # -log sigmoid(x) t - log(1 - sigmoid(x)) (1 - t) = softplus(x) - x t
    return (F.softplus(inputs).sum(-1, keepdim=True) - _products(inputs, targets)) / targets.shape[-1]


def batch_dice_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss (Q, N) of mask logits `inputs` (Q, P) and each of the masks `targets` (N, P).

    All may have the same leading dimensions.
    """
    sigmoid = inputs.sigmoid()
    overlap = 2 * _products(sigmoid, targets) + 1
    return 1 - overlap / (sigmoid.sum(-1, keepdim=True) + targets.sum(-1)[..., None, :] + 1)


def losses_of_halves(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both losses (B, Q, N) of mask logits `inputs` (B, Q, P) and each of the masks `targets` (B, N, P).

    As products of bf16 numbers: logits and probabilities have 16 significant bits, binary masks 8, where a point lies
    between pixels. These errors have any sign, and nearly vanish in a sum over thousands of points. Those of soft
    masks, of the same value at many points, would not.
    """
    terms, sums = matching_terms(inputs)
    count = targets.shape[1]
    masks = F.pad(targets.to(torch.bfloat16), (0, 0, 0, -count % 8))  # results of 43 objects are not aligned
    sums_of_both = product(terms.flatten(1, 2), twice(masks, 2).mT)[..., :count].unflatten(1, (-1, 2))  # (B, Q, 2, N)
    overlap = 2 * sums_of_both[:, :, 1] + 1
    dice = 1 - overlap / (sums[:, :, 1, None] + targets.sum(-1)[:, None] + 1)
    return (sums[:, :, :1] - sums_of_both[:, :, 0]) / targets.shape[-1], dice


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return the products (Q, N) of the rows of a (Q, P) and b (N, P), with the same leading dimensions as both."""
    parts = parts_of(a.shape[-1], a.shape[:-1].numel() * b.shape[-2]) if a.is_cuda else 1
    return a @ b.mT if parts == 1 else products_in_parts(a, b, parts)


def parts_of(points: int, results: int) -> int:
    """Return into how many parts a GPU splits sums over so many points, of so many results: a power of two.

    A block of threads computes some thousand results. A few hundred blocks keep a GPU busy; few objects with thousands
    of points give only a dozen.
    """
    parts = 1
    if not results:  # of no objects, or of no images, which cannot be stacked
        return parts
    while parts < 16 and results * parts < _FEW_RESULTS and points % (2 * parts) == 0 and points // parts >= _LONG_SUM:
        parts *= 2
    return parts


def products_in_parts(a: Tensor, b: Tensor, parts: int) -> Tensor:
    """Return `a @ b.mT` as the sum over equal parts of the last dimension, which are multiplied side by side.

    Of several images, with one dimension more, either their parts or their images: all at once would be copied first.
    """
    if a.dim() > 2 and parts <= len(a):
        chunks = zip(a.chunk(parts, -1), b.chunk(parts, -1), strict=True)
        return functools.reduce(Tensor.add_, (x @ y.mT for x, y in chunks))
    if a.dim() > 2:
        return torch.stack([products_in_parts(x, y, parts) for x, y in zip(a, b, strict=True)])
    a, b = (x.unflatten(-1, (parts, -1)).transpose(0, 1) for x in (a, b))
    return (a @ b.mT).sum(0)


# Names under which programs import compiled forms; these functions need no compilation.
batch_sigmoid_ce_loss_jit = batch_sigmoid_ce_loss
batch_dice_loss_jit = batch_dice_loss
_WRITTEN = batch_sigmoid_ce_loss, batch_dice_loss


@extensible
class HungarianMatcher(nn.Module):
    """Minimum-cost assignment by a weighted sum of class probability, mask cross-entropy and mask dice.

    Args:
        cost_class, cost_mask, cost_dice: weights of the terms.
        num_points: random points per image at which masks are compared; all predictions of an image share them.
        max_nonfinite: raise after this many iterations with a non-finite cost (0: never). Where a GPU solves the
            assignment, an iteration is counted in one of the next ones, when its costs were seen without waiting.
        object_points: share of the points that are drawn in regions around the objects, see `object_regions`.
    """

    def __init__(
        self,
        cost_class: float = 1.0,
        cost_mask: float = 1.0,
        cost_dice: float = 1.0,
        num_points: int = 12544,
        max_nonfinite: int = 0,
        object_points: float = 0.0,
    ) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("all matching costs are zero: CLASS_WEIGHT, MASK_WEIGHT or DICE_WEIGHT must be positive")
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points
        self.object_points = object_points
        self.max_nonfinite = max_nonfinite
        self.nonfinite_steps = 0
        self._warned_crowd = False
        # Of each iteration on a GPU: whether the costs of (B, L) are finite, and objects and name of each image.
        self._unchecked: deque[tuple[HostCopy, list[int], list[str | None]]] = deque()

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        """Match one prediction of every image.

        Args:
            outputs: "pred_logits" and "pred_masks" as in `DecoderOutputs`; its "aux_outputs" are not matched.
            targets: as for `SetCriterion`.

        Returns:
            Per image the indices of matched queries and of their targets, int64 (min(Q, N),) each, on the CPU.
        """
        return self.memory_efficient_forward(outputs, targets)

    @torch.no_grad()
    def memory_efficient_forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Match as `forward` does, which calls this method; a subclass that overrides it is asked layer by layer."""
        predictions = Predictions.of(without_earlier(outputs))
        truth = GroundTruth.of(targets, predictions.logits.device)
        truth.check_frames(predictions.frames)
        pairs = self.match_layers(predictions, truth)
        return [(torch.from_numpy(p.query), torch.from_numpy(p.target)) for p in pairs]

    @torch.no_grad()
    def match_layers(self, predictions: Predictions, truth: GroundTruth) -> list[Assignment]:
        """Match every prediction of every image.

        Args:
            predictions: L predictions for B images.
            truth: the objects of the images.

        Returns:
            One `Assignment` per image with min(Q, N) pairs for each of the L predictions.

        Raises:
            FloatingPointError: costs were not finite in `max_nonfinite` iterations.
        """
        with torch.autocast(predictions.logits.device.type, enabled=False):
            costs = self._costs(predictions, truth)
        shapes = [tuple(c.shape) for c in costs]
        host = to_cpu(torch.cat([c.flatten() for c in costs])).numpy()
        parts = np.split(host, np.cumsum([np.prod(s) for s in shapes])[:-1])
        costs_host = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        self._check_finite(costs_host, truth.names)
        return [self._assign(cost) for cost in costs_host]

    @torch.no_grad()
    def match_pairs(self, predictions: Predictions, truth: GroundTruth) -> Pairs:
        """Match every prediction of every image, on a GPU without waiting for it.

        Costs on other devices, and problems that the kernel of `ops.linear_assignment` has no room for, are matched by
        `match_layers`; the pairs are the same, except that of several best assignments another one may be found.

        Raises:
            FloatingPointError: as `match_layers`, for costs of this or of an earlier iteration.
        """
        device, (_, images, queries, _) = predictions.logits.device, predictions.logits.shape
        counts = truth.counts
        self.check_earlier_costs()
        if not assigns_on(device.type, queries, max(counts)) or not unchanged(self, HungarianMatcher, "match_layers"):
            return Pairs.of(self.match_layers(predictions, truth), counts, queries, device)
        self._warn_of_crowds(counts, queries)
        with torch.autocast(device.type, enabled=False):
            cost, problem_counts = self._padded_costs(predictions, truth)
        self._unchecked.append((HostCopy(cost.isfinite().flatten(2).all(2)), counts, truth.names))
        solution = linear_assignment(cost.flatten(0, 1), problem_counts)
        return Pairs.of_solution(solution.unflatten(0, (images, -1)), counts, queries)

    def _points(self, truth: GroundTruth, device: torch.device) -> Tensor:
        """Draw the points (B, P, 2) of each image."""
        points = torch.rand(len(truth.labels), self.num_points, 2, device=device)
        if self.object_points:
            move_to_objects(points, truth, self.object_points)
        return points

    def _costs(self, predictions: Predictions, truth: GroundTruth) -> list[Tensor]:
        """Return the (L, Q, N) cost of each pair, per image."""
        device = predictions.logits.device
        rows = [len(labels) * truth.frames for labels in truth.labels]
        image = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
        points = self._points(truth, device)
        values = truth.bank.sample_shared(to_device(image, device), points, truth.size).split(rows)
        costs = []
        samples = predictions.sample(points, images=1)
        for i, (logits, labels, value) in enumerate(zip(samples, truth.labels, values, strict=True)):
            target = value.view(len(labels), logits.shape[-1])
            costs.append(self._cost(predictions.logits[:, i], logits[0], labels, target))
        return costs

    def _padded_costs(self, predictions: Predictions, truth: GroundTruth) -> tuple[Tensor, Tensor]:
        """Compute the costs of all images together, in a number of steps that does not depend on that of the images.

        Returns:
            The (B, L, Q, N) cost of each pair, where N is the largest number of objects, and the (B * L,) number of
            objects of each problem. Costs behind it repeat those of the last object of the image.
        """
        logits = predictions.logits
        layers, images, queries, _ = logits.shape
        counts = np.array(truth.counts)
        most, total = int(counts.max()), int(counts.sum())
        objects = (np.cumsum(counts) - counts)[:, None] + np.minimum(np.arange(most), counts[:, None] - 1)
        tables = (
            np.repeat(np.arange(images), counts * truth.frames),
            objects.clip(0, max(total - 1, 0)),  # those of images without objects are never read
            np.repeat(counts, layers),
        )
        image, index, problem_counts = to_device_together([torch.from_numpy(t) for t in tables], logits.device)
        points = self._points(truth, logits.device)
        if most == 0:
            return logits.new_zeros(images, layers, queries, 0), problem_counts
        masks = truth.bank.sample_shared(image, points, truth.size).view(total, -1)
        labels = truth.all_labels(logits.device)
        cost = functools.partial(self._cost, halves=True) if self._takes_halves(predictions, truth) else self._cost
        together = max(1, _CHUNK // (layers * queries * masks.shape[1]))
        parts = zip(
            predictions.sample(points, together),
            logits.transpose(0, 1).split(together),
            index.split(together),
            strict=True,
        )
        costs = []
        for sampled, classes, of_part in parts:
            flat = of_part.flatten()
            targets = masks.index_select(0, flat).view(*of_part.shape, -1)
            of_objects = labels.index_select(0, flat).view_as(of_part), targets
            costs.append(cost(classes, sampled, *of_objects))
        return torch.cat(costs), problem_counts

    def _takes_halves(self, predictions: Predictions, truth: GroundTruth) -> bool:
        """Return whether `losses_of_halves` is exact enough, and no program has replaced what it stands for."""
        return (
            predictions.halves is not None
            and truth.bank.data.dtype == torch.uint8
            and unchanged(self, HungarianMatcher, "_cost")
            and (batch_sigmoid_ce_loss, batch_dice_loss) == _WRITTEN
        )

    def _cost(
        self, class_logits: Tensor, logits: Tensor, labels: Tensor, target: Tensor, halves: bool = False
    ) -> Tensor:
        """Return the cost of each pair of one image, or of several if all arguments have this dimension first.

        Args:
            class_logits: (L, Q, K + 1).
            logits: (L * Q, P) mask logits at P points (of all frames), `target` (N, P) the masks there.
            labels: (N,) int64.
            halves: `logits` are products of bf16 numbers, of which 16 significant bits are enough; masks are binary.

        Returns:
            (L, Q, N).
        """
        shape = *class_logits.shape[:-1], labels.shape[-1]
        if labels.shape[-1] == 0:
            return class_logits.new_zeros(shape)
        if halves and logits.dim() == 3 and takes_terms(logits):
            cross_entropy, dice = losses_of_halves(logits, target)
        else:
            cross_entropy, dice = batch_sigmoid_ce_loss(logits, target), batch_dice_loss(logits, target)
        mask_cost = (self.cost_mask * cross_entropy + self.cost_dice * dice).view(shape)
        probability = class_logits.softmax(-1).gather(-1, labels[..., None, None, :].expand(shape))
        return mask_cost - self.cost_class * probability

    def check_earlier_costs(self, wait: bool = False) -> None:
        """Count and report costs that were not finite in earlier iterations, those that a GPU has computed by now.

        Args:
            wait: wait for the GPU, and check those of all iterations.

        Raises:
            FloatingPointError: costs were not finite in `max_nonfinite` iterations.
        """
        while self._unchecked and (wait or len(self._unchecked) > _MOST_UNCHECKED or self._unchecked[0][0].ready()):
            finite, counts, names = self._unchecked.popleft()
            rows = zip(finite.value().numpy(), counts, strict=True)
            bad = {i: np.flatnonzero(~row) for i, (row, count) in enumerate(rows) if count and not row.all()}
            self._report(bad, names)

    def _check_finite(self, costs: Sequence[np.ndarray], names: Sequence[str | None]) -> None:
        bad = {}
        for image, cost in enumerate(costs):
            if not np.isfinite(cost).all():
                bad[image] = np.flatnonzero(~np.isfinite(cost).all(axis=(1, 2)))
                np.nan_to_num(cost, copy=False, nan=WORST, posinf=WORST, neginf=-WORST)
        self._report(bad, names)

    def _report(self, bad: Mapping[int, np.ndarray], names: Sequence[str | None]) -> None:
        """Count an iteration with non-finite costs, and warn of it or raise; `bad` has the predictions by image."""
        if not bad:
            return
        self.nonfinite_steps += 1
        sources = [
            f"image {names[image] or f'number {image} of the batch'}, predictions {layers.tolist()}"
            for image, layers in bad.items()
        ]
        message = (
            f"Matching costs are not finite ({self.nonfinite_steps} iterations so far): {'; '.join(sources)}. "
            "Prediction 0 is of the last layer, n > 0 of layer n - 1. Usual causes: a learning rate that is too "
            "high, fp16 overflow."
        )
        logger.warning(message)
        if self.max_nonfinite and self.nonfinite_steps >= self.max_nonfinite:
            raise FloatingPointError(message + " Lower SOLVER.BASE_LR or set SOLVER.AMP.DTYPE bfloat16.")

    def _warn_of_crowds(self, counts: Sequence[int], queries: int) -> None:
        count = next((n for n in counts if n > queries), 0)
        if count and not self._warned_crowd:
            self._warned_crowd = True
            logger.warning(
                "An image has %d objects but the model only %d queries; the rest are not matched. "
                "Raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES.",
                count,
                queries,
            )

    def _assign(self, cost: np.ndarray) -> Assignment:
        layers, queries, count = cost.shape
        self._warn_of_crowds([count], queries)
        pairs = [linear_sum_assignment(c) for c in cost]
        matched = min(queries, count)
        return Assignment(
            np.repeat(np.arange(layers), matched),
            np.concatenate([p[0] for p in pairs]).astype(np.int64),
            np.concatenate([p[1] for p in pairs]).astype(np.int64),
        )
