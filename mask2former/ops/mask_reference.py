"""Mask logits to results in PyTorch: the default kernels of the ops in `mask_results`, for any device.

Some masks are resized at a time, or some rows of all, so that memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = Sequence[int]  # (h, w)

# Masks that are resized together have about this many pixels.
_CHUNK = 2**25
UNIT = 2.0**32  # of a sum of probabilities as an integer


def to_image(logits: Tensor, padded: Size, image: Size) -> Tensor:
    """Resize mask logits (N, H4, W4) to the padded size, and crop to the image."""
    resized = F.interpolate(logits[None], tuple(padded), mode="bilinear", align_corners=False)[0]
    return resized[:, : image[0], : image[1]]


def resize_masks(logits: Tensor, padded: Size, image: Size, output: Size | None) -> Tensor:
    """Resize mask logits (N, H4, W4) to the padded size, crop to the image, resize to the output (N, h, w)."""
    masks = to_image(logits, padded, image)
    if output is None or tuple(output) == tuple(image):
        return masks
    return F.interpolate(masks[None], tuple(output), mode="bilinear", align_corners=False)[0]


def _chunks(count: int, padded: Size, output: Size) -> Iterator[slice]:
    step = max(1, _CHUNK // max(padded[0] * padded[1], output[0] * output[1]))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def binary_masks(
    logits: Tensor, queries: Tensor, padded: Size, image: Size, output: Size, packed: bool
) -> tuple[Tensor, Tensor]:
    height, width = output
    columns = -(-width // 8) if packed else width
    masks = logits.new_empty((len(queries), height, columns), dtype=torch.uint8 if packed else torch.bool)
    numbers = logits.new_empty((len(queries), 6), dtype=torch.int64)
    for part in _chunks(len(queries), padded, output):
        values = resize_masks(logits[queries[part].clamp(min=0)].float(), padded, image, output)
        inside = (values > 0) & (queries[part] >= 0)[:, None, None]
        total = (values.sigmoid() * inside).sum((1, 2), dtype=torch.float64)
        edges = (*_edges(inside.any(1)), *_edges(inside.any(2)))
        left, right, top, bottom = edges
        area = inside.sum((1, 2))
        numbers[part] = torch.stack((area, (total * UNIT).round().long(), left, top, right, bottom), 1)
        masks[part] = _pack(inside) if packed else inside
    return masks, numbers


def _edges(hit: Tensor) -> tuple[Tensor, Tensor]:
    """Return first and last + 1 of the positions (N, n) that are True; n and 0 where none is."""
    position = torch.arange(hit.shape[1], device=hit.device)
    return torch.where(hit, position, hit.shape[1]).amin(1), torch.where(hit, position + 1, 0).amax(1)


def _pack(masks: Tensor) -> Tensor:
    """Pack bool (N, h, w) into uint8 (N, h, ceil(w / 8)), the first pixel in the lowest bit."""
    padded = F.pad(masks.to(torch.uint8), (0, -masks.shape[2] % 8)).unflatten(2, (-1, 8))
    packed = padded[..., 0].clone()
    for bit in range(1, 8):
        packed |= padded[..., bit] << bit
    return packed


def panoptic_argmax(logits: Tensor, weights: Tensor, padded: Size, image: Size, output: Size) -> tuple[Tensor, Tensor]:
    best = logits.new_full(tuple(output), -1.0, dtype=torch.float32)
    winner = torch.full_like(best, -1, dtype=torch.int32)
    inside = torch.zeros_like(best, dtype=torch.bool)
    area = []
    weights = weights.float()
    for part in _chunks(len(logits), padded, output):
        probability = resize_masks(logits[part].float(), padded, image, output).sigmoid()
        area.append((probability >= 0.5).sum((1, 2)) * (weights[part] >= 0))
        score, index = (probability * weights[part, None, None]).max(0)
        better = (score > best) & (weights[part][index] >= 0)
        best = torch.where(better, score, best)
        winner = torch.where(better, index.int() + part.start, winner)
        inside = torch.where(better, probability.gather(0, index[None])[0] >= 0.5, inside)
    flat = winner.flatten().long() + 1
    won, visible = (
        flat.new_zeros(len(logits) + 1).index_add_(0, flat, counted.flatten().long())
        for counted in (torch.ones_like(inside), inside)
    )
    numbers = torch.stack((torch.cat(area), won[1:], visible[1:]), 1) if area else flat.new_zeros(0, 3)
    return torch.where(inside, winner, -1), numbers


def best_classes(logits: Tensor, scores: Tensor, padded: Size, image: Size, output: Size) -> Tensor:
    labels = logits.new_empty(tuple(output), dtype=torch.uint8)
    scores = scores.float().contiguous()
    step = max(1, 8 * _CHUNK // (sum(scores.shape) * output[1]))
    for begin in range(0, output[0], step):
        end = min(begin + step, output[0])
        masks = resize_rows(logits, padded, image, output, begin, end, True).flatten(1)
        sums = masks.new_empty(len(scores), masks.shape[1])
        torch.mm(scores, masks, out=sums)  # where it is to be written, which keeps it in fp32 under autocast
        labels[begin:end] = sums.argmax(0).view(end - begin, -1)
    return labels


def resize_rows(
    logits: Tensor, padded: Size, image: Size, output: Size, begin: int, end: int, as_probability: bool
) -> Tensor:
    masks = to_image(logits.float(), padded, image)
    if tuple(output) == tuple(image):
        rows = masks[:, begin:end]
    else:
        rows = _blended_rows(masks, output, begin, end)
    return (rows.sigmoid() if as_probability else rows).contiguous()


def _blended_rows(masks: Tensor, output: Size, begin: int, end: int) -> Tensor:
    """Resize masks (N, h, w) to the rows [begin, end) of the output, as bilinear interpolation does."""
    low, high, weight = _places(masks, 1, output[0], begin, end)
    scale = masks.shape[1] / output[0]
    first = max(0, int(begin * scale) - 2)  # of the rows that are read; wide enough, and known without a look at `low`
    source = masks[:, first : int((end + 1) * scale) + 2]
    left, right, upper = _places(masks, 2, output[1], 0, output[1])
    across = source[..., left] * (1 - upper) + source[..., right] * upper
    weight = weight[:, None]
    return across[:, low - first] * (1 - weight) + across[:, high - first] * weight


def _places(masks: Tensor, dim: int, target: int, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the neighbors, low and high, of the pixels [begin, end) of a result, and the weight of the higher one."""
    source = masks.shape[dim]
    scale = float(np.float32(source) / np.float32(target))
    pixels = torch.arange(begin, end, device=masks.device, dtype=torch.float32)
    position = ((pixels + 0.5) * scale - 0.5).clamp(min=0)
    low = position.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), position - low
