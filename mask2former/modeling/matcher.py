"""Bipartite matching of queries and ground-truth objects (DETR, arXiv 2005.12872), on sampled points.

All predictions of an iteration are matched together by `match_layers`: masks are read once, and costs are copied to the
CPU once. Called as a module, the matcher matches one prediction.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..utils.overrides import extensible
from .device_transfer import to_cpu, to_device
from .ground_truth import GroundTruth
from .outputs import without_earlier
from .point_sampling import Predictions

logger = logging.getLogger(__name__)

# Replaces non-finite costs: larger than any finite cost, so that such a pair is matched last.
_WORST = 1e8


@dataclass
class Assignment:
    """Matched pairs of one image: `layer`, `query` and `target` are (M,) int64 arrays on the CPU."""

    layer: np.ndarray
    query: np.ndarray
    target: np.ndarray


def batch_sigmoid_ce_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy (Q, N) of mask logits `inputs` (Q, P) and each of the masks `targets` (N, P)."""
    # -log sigmoid(x) t - log(1 - sigmoid(x)) (1 - t) = softplus(x) - x t
    return (F.softplus(inputs).sum(-1, keepdim=True) - inputs @ targets.T) / targets.shape[1]


def batch_dice_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss (Q, N) of mask logits `inputs` (Q, P) and each of the masks `targets` (N, P)."""
    sigmoid = inputs.sigmoid()
    overlap = 2 * (sigmoid @ targets.T) + 1
    return 1 - overlap / (sigmoid.sum(-1, keepdim=True) + targets.sum(-1) + 1)


# Names under which programs import compiled forms; these functions need no compilation.
batch_sigmoid_ce_loss_jit = batch_sigmoid_ce_loss
batch_dice_loss_jit = batch_dice_loss


@extensible
class HungarianMatcher(nn.Module):
    """Minimum-cost assignment by a weighted sum of class probability, mask cross-entropy and mask dice.

    Args:
        cost_class, cost_mask, cost_dice: weights of the terms.
        num_points: random points per image at which masks are compared; all predictions of an image share them.
        max_nonfinite: raise after this many iterations with a non-finite cost (0: never).
    """

    def __init__(
        self,
        cost_class: float = 1.0,
        cost_mask: float = 1.0,
        cost_dice: float = 1.0,
        num_points: int = 12544,
        max_nonfinite: int = 0,
    ) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("all matching costs are zero: CLASS_WEIGHT, MASK_WEIGHT or DICE_WEIGHT must be positive")
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points
        self.max_nonfinite = max_nonfinite
        self.nonfinite_steps = 0
        self._warned_crowd = False

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

    def _costs(self, predictions: Predictions, truth: GroundTruth) -> list[Tensor]:
        """Return the (L, Q, N) cost of each pair, per image."""
        device = predictions.logits.device
        rows = [len(labels) * truth.frames for labels in truth.labels]
        image = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
        points = torch.rand(len(rows), self.num_points, 2, device=device)
        values = truth.bank.sample_shared(to_device(image, device), points, truth.size).split(rows)
        costs = []
        for i, (logits, labels, value) in enumerate(zip(predictions.sample(points), truth.labels, values, strict=True)):
            costs.append(self._cost(predictions.logits[:, i], logits, labels, value.view(len(labels), logits.shape[1])))
        return costs

    def _cost(self, class_logits: Tensor, logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """Return the cost of each pair of one image.

        Args:
            class_logits: (L, Q, K + 1).
            logits: (L * Q, P) mask logits at P points (of all frames), `target` (N, P) the masks there.
            labels: (N,) int64.

        Returns:
            (L, Q, N).
        """
        layers, queries, _ = class_logits.shape
        count = len(labels)
        if count == 0:
            return class_logits.new_zeros(layers, queries, 0)
        cross_entropy, dice = batch_sigmoid_ce_loss(logits, target), batch_dice_loss(logits, target)
        mask_cost = (self.cost_mask * cross_entropy + self.cost_dice * dice).view(layers, queries, count)
        return mask_cost - self.cost_class * class_logits.softmax(-1)[..., labels]

    def _check_finite(self, costs: Sequence[np.ndarray], names: Sequence[str | None]) -> None:
        bad = [(i, c) for i, c in enumerate(costs) if not np.isfinite(c).all()]
        if not bad:
            return
        self.nonfinite_steps += 1
        sources = []
        for image, cost in bad:
            layers = np.flatnonzero(~np.isfinite(cost).all(axis=(1, 2)))
            name = names[image] or f"number {image} of the batch"
            sources.append(f"image {name}, predictions {layers.tolist()}")
            np.nan_to_num(cost, copy=False, nan=_WORST, posinf=_WORST, neginf=-_WORST)
        message = (
            f"Matching costs are not finite ({self.nonfinite_steps} iterations so far): {'; '.join(sources)}. "
            "Prediction 0 is of the last layer, n > 0 of layer n - 1. Usual causes: a learning rate that is too "
            "high, fp16 overflow."
        )
        logger.warning(message)
        if self.max_nonfinite and self.nonfinite_steps >= self.max_nonfinite:
            raise FloatingPointError(message + " Lower SOLVER.BASE_LR or set SOLVER.AMP.DTYPE bfloat16.")

    def _assign(self, cost: np.ndarray) -> Assignment:
        layers, queries, count = cost.shape
        if count > queries and not self._warned_crowd:
            self._warned_crowd = True
            logger.warning(
                "An image has %d objects but the model only %d queries; the rest are not matched. "
                "Raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES.",
                count,
                queries,
            )
        pairs = [linear_sum_assignment(c) for c in cost]
        matched = min(queries, count)
        return Assignment(
            np.repeat(np.arange(layers), matched),
            np.concatenate([p[0] for p in pairs]).astype(np.int64),
            np.concatenate([p[1] for p in pairs]).astype(np.int64),
        )
