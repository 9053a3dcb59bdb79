"""Regions around the objects, in which a share of the points is drawn, so that small objects get points too.

Of 12544 points that are drawn uniformly in an image of 1024 x 1024 pixels, an object of 10 x 10 pixels gets one in the
mean: its masks are matched and compared at almost nothing. A region is the bounding box of an object with a margin, so
that it also shows where the object ends.

Points in regions are not reweighted. Costs and losses are therefore means over a density that is higher around objects:
(1 - share) x that of the image + share x that of the regions, each region with the same weight, whatever its size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .device_transfer import to_device_together
from .ground_truth import GroundTruth
from .point_sampling import points_in

# Margin on each side, as a fraction of the edge of the box, and at least in pixels of the image.
_MARGIN = 0.2
_LEAST = 4.0


def regions_of(truth: GroundTruth) -> Tensor:
    """Return the regions of all masks, frame by frame: (N * T, 4), left, top, right, bottom in [0, 1].

    That of an empty mask is the complete image. Waits for nothing.
    """
    height, width = truth.size
    left, top, right, bottom = truth.boxes.unbind(1)
    x, y = ((high - low).mul(_MARGIN) for low, high in ((left, right), (top, bottom)))
    x, y = x.clamp(min=_LEAST / width), y.clamp(min=_LEAST / height)
    regions = torch.stack((left - x, top - y, right + x, bottom + y), 1).clamp(0, 1)
    whole = torch.zeros_like(regions)
    whole[:, 2:] = 1
    return torch.where((right > left)[:, None], regions, whole)


def move_to_objects(points: Tensor, truth: GroundTruth, share: float) -> None:
    """Move a share of the points of each image into regions of its objects, in place; waits for nothing.

    Each of these points draws one of the objects (and frames) of its image, all with the same probability.

    Args:
        points: (B, P, 2), drawn uniformly in [0, 1]; the first int(share * P) of each image move. Those of images
            without objects stay where they are.
        truth: the objects of the B images.
        share: in [0, 1].
    """
    inside = points[:, : int(share * points.shape[1])]
    rows = np.array(truth.counts, dtype=np.int64) * truth.frames
    first = np.where(rows > 0, np.cumsum(rows) - rows, rows.sum())
    tables = [torch.from_numpy(values)[:, None] for values in (first, rows.clip(min=1))]
    start, count = to_device_together(tables, points.device)
    whole = torch.zeros(1, 4, device=points.device)
    whole[:, 2:] = 1
    regions = torch.cat((regions_of(truth), whole))
    drawn = (torch.rand(inside.shape[:2], device=points.device) * count).long().minimum(count - 1)
    inside.copy_(points_in(regions[start + drawn], inside))
