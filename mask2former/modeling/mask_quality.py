"""Mask quality: the IoU that a query expects between its mask and the object.

A class score says what an object is, not how well it is outlined, yet instances are ranked by it. Mask Scoring R-CNN
(arXiv 1903.00241) learns the IoU of each predicted mask and multiplies the score by it; scores with an exponent are
those of IoU-aware detectors (arXiv 1912.05992). Here the IoU is predicted from the embedding of the query. It is
learned from matched queries alone, with cross-entropy, whose smallest value is at the IoU itself.

The IoU to learn is not read at the points of the losses: most of these lie on contours, and of points that are uniform
in the image a small object may get none. An IoU needs points of the same density wherever one of the two masks is, and
none elsewhere: a grid in the smallest box around both. It is the same for objects of any size, and draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures.masks import boxes_from_masks
from .ground_truth import GroundTruth
from .point_sampling import points_in, sample_maps

# Points along each edge of the box of a predicted mask and its object.
_GRID = 56


@torch.no_grad()
def mask_ious(logits: Tensor, truth: GroundTruth, rows: Tensor) -> Tensor:
    """Compute the IoU of predicted masks, cut at one half, and masks of the ground truth; waits for nothing.

    Args:
        logits: (M, H4, W4), before the sigmoid, of the padded image.
        truth: the objects.
        rows: (M,) int64, the mask of each in the bank.

    Returns:
        (M,) in [0, 1]; 0 where both masks are empty.
    """
    height, width = logits.shape[-2:]
    left, top, right, bottom = boxes_from_masks(logits > 0).unbind(1)
    # Between pixels a mask ends where the logit is zero, at most half a pixel outside.
    ours = torch.stack(
        ((left - 0.5) / width, (top - 0.5) / height, (right + 0.5) / width, (bottom + 0.5) / height), 1
    ).clamp(0, 1)
    points = _grid(_around(ours, right > left, truth.boxes[rows]), logits.device)
    predicted = sample_maps(logits[:, None], points)[:, 0] > 0
    expected = truth.bank.sample(rows, points, truth.size) >= 0.5
    return (predicted & expected).sum(1) / (predicted | expected).sum(1).clamp(min=1)


def _around(first: Tensor, is_there: Tensor, second: Tensor) -> Tensor:
    """Return the smallest boxes around two (M, 4); the first counts where `is_there` (M,), the second if not empty."""
    exists = torch.stack((is_there, second[:, 2] > second[:, 0]))[..., None]
    both = torch.stack((first, second))
    low = torch.where(exists, both[..., :2], 1.0).amin(0)
    high = torch.where(exists, both[..., 2:], 0.0).amax(0)
    return torch.cat((low, high), 1)


def _grid(boxes: Tensor, device: torch.device) -> Tensor:
    """Return the centers of the cells of a grid in each of boxes (M, 4): (M, P, 2)."""
    centers = (torch.arange(_GRID, device=device) + 0.5) / _GRID
    unit = torch.stack((centers.expand(_GRID, -1), centers[:, None].expand(-1, _GRID)), -1).view(1, -1, 2)
    return points_in(boxes[:, None], unit)


def quality_errors(quality: Tensor, logits: Tensor, truth: GroundTruth, rows: Tensor) -> Tensor:
    """Return the (M,) cross-entropy of predicted quality (M,), before the sigmoid, and the IoU of the masks.

    Other arguments as for `mask_ious`; no gradients go through the masks.
    """
    ious = mask_ious(logits.detach(), truth, rows)
    return F.binary_cross_entropy_with_logits(quality, ious, reduction="none")


def predicted_quality(outputs: Mapping[str, Tensor]) -> Tensor | None:
    """Return the quality (B, Q), in [0, 1], in a head's outputs; None of a model that predicts none."""
    return outputs["pred_quality"].float().sigmoid() if "pred_quality" in outputs else None
