"""Boundaries of masks (Cheng et al., "Boundary IoU", CVPR 2021).

The boundary of a mask is the set of its pixels within distance d (8-connected) of a pixel outside the mask or of the
image border; d is a fraction of the image diagonal. Boundary IoU is sensitive to the contours of large objects, mask
IoU hardly is.
"""

from __future__ import annotations

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch

from ..structures.masks import paste, rle_to_patch
from ..structures.rle import Rle, encode_masks

DILATION_RATIO = 0.02  # the paper's, for COCO and others


def boundary_width(size: tuple[int, int], dilation_ratio: float = DILATION_RATIO) -> int:
    """Return the boundary width in pixels for an image of size (h, w): dilation_ratio of its diagonal, at least 1.

    Raises ValueError if the ratio is not in (0, 1].
    """
    if not 0 < dilation_ratio <= 1:
        raise ValueError(f"dilation_ratio must be above 0 and at most 1, got {dilation_ratio}")
    return max(1, round(dilation_ratio * float(np.hypot(*size))))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the boundary of mask (h, w) bool, `width` pixels wide, as (h, w) bool; outside the image is background."""
    if not mask.size:
        return mask
    square = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    inner = cv2.erode(np.ascontiguousarray(mask).view(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inner == 0)


def boundary_rles(rles: list[Rle], dilation_ratio: float = DILATION_RATIO) -> list[Rle]:
    """Return the boundaries of masks as RLEs; all masks belong to one image."""
    if not rles:
        return []
    size = (int(rles[0]["size"][0]), int(rles[0]["size"][1]))
    width = boundary_width(size, dilation_ratio)
    patches = [rle_to_patch(rle, size) for rle in rles]
    narrow = paste([p._replace(bits=boundary(p.bits, width)) for p in patches], size)
    return encode_masks(torch.from_numpy(narrow))


def boundary_overlap(
    detections: list[Rle],
    truths: list[Rle],
    crowd: list[int],
    least: float = 0.0,
    dilation_ratio: float = DILATION_RATIO,
) -> np.ndarray:
    """Return the smaller of mask IoU and boundary IoU, (D, G), as the paper's boundary AP uses it.

    Where mask IoU is 0 or below `least`, the mask IoU is returned: it bounds the result, so no boundary is computed.
    """
    ious: np.ndarray = mask_util.iou(detections, truths, crowd)
    relevant = ious >= max(least, np.finfo(float).tiny)
    rows, columns = np.flatnonzero(relevant.any(axis=1)), np.flatnonzero(relevant.any(axis=0))
    if not len(rows):
        return ious
    narrow: np.ndarray = mask_util.iou(
        boundary_rles([detections[i] for i in rows], dilation_ratio),
        boundary_rles([truths[i] for i in columns], dilation_ratio),
        [crowd[i] for i in columns],
    )
    pairs = np.ix_(rows, columns)
    ious[pairs] = np.minimum(ious[pairs], narrow)
    return ious


def boundary_areas(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int, dilation_ratio: float
) -> np.ndarray:
    """Count the boundary pixels of each class of two label maps.

    Args:
        truth: (h, w) classes 0 to K - 1 or `ignore_label`, whose pixels are not counted.
        prediction: (h, w) classes 0 to K - 1.

    Returns:
        int64 (K, 2): pixels in both boundaries of the class, and in at least one.
    """
    result = np.zeros((num_classes, 2), dtype=np.int64)
    width = boundary_width((truth.shape[0], truth.shape[1]), dilation_ratio)
    counted = truth != ignore_label
    present = np.union1d(np.unique(truth[counted]), np.unique(prediction[counted]))
    for label in present.tolist():
        true = boundary(truth == label, width)
        predicted = boundary(prediction == label, width) & counted
        result[label] = np.count_nonzero(true & predicted), np.count_nonzero(true | predicted)
    return result
