"""Merging of the queries of several views of one image, for test-time augmentation (not in the reference).

The same query of two views need not predict the same object. So the queries of each further view are matched to those
merged so far, one to one (Hungarian algorithm), by class agreement x mask IoU, and the class and mask probabilities of
matched queries are averaged.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .modeling.device_transfer import to_cpu, to_device
from .modeling.postprocess import Size

# Two queries whose masks overlap less are not the same object.
_MIN_IOU = 0.5
# An unmatched query becomes a new object if its class is at least this probable.
_MIN_SCORE = 0.5
# Pixels x queries that are compared at a time.
_CHUNK = 2**25


class MergedQueries:
    """A growing set of queries, each the average over the views that have it.

    * A query of a view and a merged query are averaged if they are matched and their masks (probability above one
      half) have an IoU of at least one half. A view without a match for a merged query changes neither its class
      nor its mask. A matched mask that is classified as no object lowers the object's score.
    * Predicted mask quality is averaged over the views that have the query, like its class.
    * The queries of the first view are always kept, so that no object of plain inference is lost. A confident query
      of another view that overlaps none of the merged ones is added, and kept in the end if more than half of the
      views have it. There are never more than twice as many queries as in one view.

    Memory: the mask probabilities of the merged queries and of one view, float32 (N, h, w) each.

    Args:
        size: resolution (h, w) of the merged masks, which cover the image without padding.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self._views = 0
        self._quality: Tensor | None = None

    def add(
        self,
        class_scores: Tensor,
        mask_logits: Tensor,
        share: tuple[float, float],
        flipped: bool,
        quality: Tensor | None = None,
    ) -> None:
        """Add the queries of one view.

        Args:
            class_scores: (Q, K + 1), after the softmax.
            mask_logits: (Q, H4, W4), before the sigmoid, of the padded view.
            share: fractions of the padded view's height and width that the image covers.
            flipped: whether the view is horizontally flipped.
            quality: (Q,) predicted mask quality, in [0, 1], of all views or of none.
        """
        masks = to_image(mask_logits, self.size, share, flipped).sigmoid_()
        class_scores = class_scores.float()
        self._views += 1
        if self._views == 1:
            self._limit = 2 * len(masks)
            self._scores, self._masks = class_scores.clone(), masks
            self._count = torch.ones(len(masks), device=masks.device)
            self._first = len(masks)
            self._quality = None if quality is None else quality.clone()
            return
        with torch.autocast(masks.device.type, enabled=False):  # 16 bits would round counts of pixels
            agreement = (self._scores / self._count[:, None])[:, :-1] @ class_scores[:, :-1].T
            overlap = self._overlap(masks)
        values, classes = class_scores.max(-1)
        confident = (classes != class_scores.shape[1] - 1) & (values >= _MIN_SCORE)
        table = to_cpu(torch.cat((agreement, overlap, confident[None].to(overlap)))).nan_to_num(0.0).numpy()
        count = len(self._masks)
        old, new, fresh = match(table[:count], table[count:-1], table[-1] > 0)
        old_index, new_index = (to_device(torch.from_numpy(i), masks.device) for i in (old, new))
        self._scores.index_add_(0, old_index, class_scores[new_index])
        self._count.index_add_(0, old_index, torch.ones_like(old_index, dtype=self._count.dtype))
        if self._quality is not None and quality is not None:
            self._quality.index_add_(0, old_index, quality[new_index])
        for merged, query in zip(old.tolist(), new.tolist(), strict=True):  # one by one: no copy of all masks
            self._masks[merged] += masks[query]
        fresh = fresh[: self._limit - count]
        if len(fresh):
            index = to_device(torch.from_numpy(fresh), masks.device)
            self._scores = torch.cat((self._scores, class_scores[index]))
            self._masks = torch.cat((self._masks, masks[index]))
            self._count = torch.cat((self._count, self._count.new_ones(len(fresh))))
            if self._quality is not None and quality is not None:
                self._quality = torch.cat((self._quality, quality[index]))

    def quality(self) -> Tensor | None:
        """Return the quality (N,) of the queries that `finish` returns; None without predicted quality."""
        return None if self._quality is None else (self._quality / self._count)[self._kept()]

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return class scores (N, K + 1) and mask logits (N, h, w), before the sigmoid; the first view's queries first.

        Changes the masks in place: call it once, at the end.
        """
        index = self._kept()
        count = self._count[index]
        masks = self._masks if len(index) == len(self._masks) else self._masks[index]
        logits = torch.logit_(masks.div_(count[:, None, None]), eps=1e-6)
        return self._scores[index] / count[:, None], logits

    def _kept(self) -> Tensor:
        votes = to_cpu(self._count)
        kept = (torch.arange(len(votes)) < self._first) | (2 * votes > self._views)
        return to_device(kept.nonzero().flatten(), self._masks.device)

    def _overlap(self, masks: Tensor) -> Tensor:
        """Compute the IoU (N, Q) of merged masks and those of a view, cut at one half; 0 where both are empty."""
        ours, theirs = self._masks.flatten(1), masks.flatten(1)
        threshold = (0.5 * self._count)[:, None]
        common = ours.new_zeros(len(ours), len(theirs))
        our_area, their_area = ours.new_zeros(len(ours)), ours.new_zeros(len(theirs))
        step = max(1, _CHUNK // (len(ours) + len(theirs)))
        for start in range(0, ours.shape[1], step):
            a = (ours[:, start : start + step] > threshold).float()
            b = (theirs[:, start : start + step] > 0.5).float()
            common += a @ b.T
            our_area += a.sum(1)
            their_area += b.sum(1)
        return common / (our_area[:, None] + their_area - common).clamp(min=1)


def match(
    agreement: np.ndarray, overlap: np.ndarray, confident: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the queries of a view to the merged ones.

    Args:
        agreement: (N, Q) probability that merged query and new query have the same class.
        overlap: (N, Q) IoU of their masks.
        confident: bool (Q,), new queries that may be added unmatched.

    Returns:
        Indices of merged queries (M,) and of the new queries matched to them (M,), and of confident new queries that
        overlap no merged one.
    """
    rows, columns = linear_sum_assignment(agreement * overlap, maximize=True)
    same = overlap[rows, columns] >= _MIN_IOU
    apart = confident & (overlap < _MIN_IOU).all(axis=0)
    return rows[same], columns[same], apart.nonzero()[0]


def to_image(mask_logits: Tensor, size: Size, share: tuple[float, float], flipped: bool) -> Tensor:
    """Resample mask logits (Q, H4, W4) of a padded, perhaps flipped view to (Q, h, w) over the image, bilinearly."""

    def coordinates(count: int, part: float) -> Tensor:
        centers = (torch.arange(count, device=mask_logits.device, dtype=torch.float32) + 0.5) / count
        return centers * (2 * part) - 1

    y, x = coordinates(size[0], share[0]), coordinates(size[1], share[1])
    x = x.flip(0) if flipped else x
    grid = torch.stack((x.expand(size), y[:, None].expand(size)), dim=-1)[None]
    logits = mask_logits[None].float()
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
