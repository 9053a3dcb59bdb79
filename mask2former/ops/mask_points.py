"""Points of the mask losses, the losses there, and what matching computes of logits at points: their ops
(`torch.ops.mask2former.draw_points`, `point_losses`, `matching_terms`), their code in PyTorch, and their entries.

Registration is as in `registration.py`. CUDA has kernels, which keep neither the candidates nor what the losses are
sums of: a few launches, and a fraction of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask_sampling import sample_masks_reference
from .ms_deform_attn import backend
from .registration import Op, register_ops

_MASKS = "Tensor data, Tensor table, Tensor index, SymInt height, SymInt width"
_SCHEMAS = (
    "draw_points(Tensor logits, Tensor seed, Tensor? regions, SymInt points, SymInt candidates, SymInt important, "
    "SymInt inside) -> Tensor",
    f"point_losses(Tensor logits, Tensor points, {_MASKS}) -> (Tensor, Tensor, Tensor)",
    f"point_losses_backward(Tensor grad_cross_entropy, Tensor grad_dice, Tensor sums, Tensor logits, Tensor points, "
    f"{_MASKS}) -> Tensor",
    "matching_terms(Tensor logits) -> (Tensor, Tensor)",
)

_WIDEST = 2**14  # of which the gradient fits into the memory of a block


def takes_points(logits: Tensor) -> bool:
    """Return whether compiled kernels draw points of mask logits (M, H, W) and compute losses there.

    They take fp32 on CUDA, W at most 16,384. Not where PyTorch has been told to compute deterministically: gradients
    are added in any order.
    """
    return logits.shape[-1] <= _WIDEST and takes_terms(logits)


def takes_terms(logits: Tensor) -> bool:
    """Return whether a compiled kernel computes `matching_terms` of logits (B, R, P) of any P, as in `takes_points`."""
    return (
        logits.is_cuda
        and logits.dtype == torch.float32
        and not torch.are_deterministic_algorithms_enabled()
        and backend("cuda") == "compiled"
        and torch._C._dispatch_has_kernel_for_dispatch_key("mask2former::point_losses", "CUDA")
    )


@torch.no_grad()
def draw_points(
    logits: Tensor, points: int, candidates: int, important: int, regions: Tensor | None = None, inside: int = 0
) -> Tensor:
    """Draw points of masks, most of them where the logits are nearest to 0 (PointRend, arXiv 1912.08193).

    Args:
        logits: (M, H, W) before the sigmoid.
        points: P.
        candidates: number of uniformly drawn points of which the important ones are chosen.
        important: how many of P are chosen by the magnitude of their logit; the rest is drawn uniformly.
        regions: (M, 4) boxes in [0, 1], left, top, right, bottom.
        inside: how many of the rest are drawn in the row's region.

    Returns:
        (M, P, 2), (x, y) in [0, 1], the important ones first. They depend on PyTorch's generator of the device.

    Raises:
        ValueError: numbers that do not fit.
    """
    if not 0 <= important <= min(points, candidates) or not 0 <= inside <= points - important:
        raise ValueError(
            f"cannot choose {important} of {candidates} candidates, and {inside} inside regions, for {points} points"
        )
    seed = torch.empty(1, dtype=torch.int64, device=logits.device).random_()
    return torch.ops.mask2former.draw_points(logits, seed, regions, points, candidates, important, inside)  # type: ignore[no-any-return]


def point_losses(
    logits: Tensor, points: Tensor, data: Tensor, table: Tensor, index: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Compare mask logits with masks at points.

    Args:
        logits: (M, H, W) before the sigmoid; they alone get gradients.
        points: (M, P, 2), (x, y) in [0, 1].
        data, table, index, size: the masks, one for each row, as `sample_masks` reads them.

    Returns:
        (M,) mean cross-entropy and (M,) dice loss.
    """
    cross_entropy, dice, _ = torch.ops.mask2former.point_losses(logits, points, data, table, index, *size)
    return cross_entropy, dice


def matching_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what the costs of matching need of mask logits, for products on the matrix units of GPUs.

    Args:
        logits: (B, R, P), fp32, before the sigmoid.

    Returns:
        bf16 (B, R, 2, 2 P): each logit, and its sigmoid, as two numbers of which it is the sum to 16 significant bits,
        the second ones behind all first ones; and fp32 (B, R, 2): the sums over P of softplus and of the sigmoid.
    """
    return torch.ops.mask2former.matching_terms(logits)  # type: ignore[no-any-return]


def philox(counter: Sequence[Tensor], seed: Tensor) -> list[Tensor]:
    """Return four random numbers, int64 in [0, 2^32), of the four words of a counter and a 64-bit seed.

    Philox-4x32-10 of Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    words = list(counter)
    low, high = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        (high0, low0), (high1, low1) = _multiply(words[0], 0xD2511F53), _multiply(words[2], 0xCD9E8D57)
        words = [high1 ^ words[1] ^ low, low1, high0 ^ words[3] ^ high, low0]
        low, high = low + 0x9E3779B9 & _WORD, high + 0xBB67AE85 & _WORD
    return words


_WORD = 0xFFFFFFFF


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower half of the product of 32-bit numbers, without leaving 64 bits."""
    lower, upper = a * (b & 0xFFFF), a * (b >> 16)
    upper = upper + (lower >> 16)
    return upper >> 16, (upper << 16 & _WORD) | lower & 0xFFFF


def _random_points(rows: int, count: int, kind: int, seed: Tensor) -> Tensor:
    """Return points (rows, count, 2), each coordinate of 24 bits in [0, 1)."""
    pairs = torch.arange((count + 1) // 2, device=seed.device).expand(rows, -1)
    row = torch.arange(rows, device=seed.device)[:, None].expand_as(pairs)
    counter = pairs, row, torch.full_like(pairs, kind), torch.zeros_like(pairs)
    numbers = torch.stack(philox(counter, seed), -1)
    return ((numbers >> 8).float() * 2**-24).view(rows, 2 * pairs.shape[1], 2)[:, :count]


def _sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Return (M, P): each row of logits (M, H, W), fp32, at its own points (M, P, 2)."""
    rows, height, width = logits.shape
    index = torch.arange(rows, device=logits.device)
    sizes = torch.stack((index * height * width, torch.full_like(index, height), torch.full_like(index, width)))
    return sample_masks_reference(logits.flatten(), sizes, index, points, None, height, width)


def _draw(
    logits: Tensor,
    seed: Tensor,
    regions: Tensor | None,
    points: int,
    candidates: int,
    important: int,
    inside: int,
) -> Tensor:
    drawn = _random_points(len(logits), candidates, 0, seed)
    certainty = _sample_logits(logits.float(), drawn).abs()
    selected = certainty.argsort(dim=1, stable=True)[:, :important].sort(dim=1).values
    others = _random_points(len(logits), points - important, 1, seed)
    if regions is not None:
        low, high = regions.float()[:, None].chunk(2, -1)
        others = torch.cat((low + others[:, :inside] * (high - low), others[:, inside:]), 1)
    return torch.cat((drawn.gather(1, selected[..., None].expand(-1, -1, 2)), others), 1)


def _compare(
    logits: Tensor, points: Tensor, data: Tensor, table: Tensor, index: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    predicted = _sample_logits(logits.float(), points)
    expected = sample_masks_reference(data, table, index, points, None, height, width)
    probability = predicted.sigmoid()
    numerator = 2 * (probability * expected).sum(1) + 1
    denominator = probability.sum(1) + expected.sum(1) + 1
    entropy = F.binary_cross_entropy_with_logits(predicted, expected, reduction="none").mean(1)
    return entropy, 1 - numerator / denominator, torch.stack((numerator, denominator), 1)


def _compare_backward(
    grad_cross_entropy: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    logits: Tensor,
    points: Tensor,
    data: Tensor,
    table: Tensor,
    index: Tensor,
    height: int,
    width: int,
) -> Tensor:
    expected = sample_masks_reference(data, table, index, points, None, height, width)
    probability = _sample_logits(logits.float(), points).sigmoid()
    numerator, denominator = sums[:, :1], sums[:, 1:]
    of_dice = grad_dice[:, None] / denominator**2
    at_points = grad_cross_entropy[:, None] / max(points.shape[1], 1) * (probability - expected) + of_dice * (
        probability * (1 - probability) * (numerator - 2 * expected * denominator)
    )
    return _added_to_maps(at_points, points, logits)


def _added_to_maps(values: Tensor, points: Tensor, logits: Tensor) -> Tensor:
    """Return (M, H, W): values (M, P) added to the four pixels around their points, as they were read."""
    rows, height, width = logits.shape
    x, y = points[..., 0].float() * width - 0.5, points[..., 1].float() * height - 0.5
    left, top = x.floor(), y.floor()
    out = torch.zeros(rows, height * width, device=logits.device)
    for row, row_share in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_share in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = torch.where(inside, row * width + column, 0).long()
            out.scatter_add_(1, place, (values * row_share * column_share).where(inside, 0))
    return out.view(rows, height, width)


def _terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.stack((logits, logits.sigmoid()), 2)
    upper = both.bfloat16()
    sums = torch.stack((F.softplus(logits).sum(2), both[:, :, 1].sum(2)), 2)
    return torch.cat((upper, (both - upper.float()).bfloat16()), 3), sums


def _fake_draw(
    logits: Tensor, seed: Tensor, regions: Tensor | None, points: int, candidates: int, important: int, inside: int
) -> Tensor:
    return logits.new_empty(logits.shape[0], points, 2, dtype=torch.float32)


def _fake_compare(
    logits: Tensor, points: Tensor, data: Tensor, table: Tensor, index: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    return tuple(logits.new_empty(shape, dtype=torch.float32) for shape in ((rows,), (rows,), (rows, 2)))  # type: ignore[return-value]


def _fake_compare_backward(
    grad_cross_entropy: Tensor, grad_dice: Tensor, sums: Tensor, logits: Tensor, *_: Any
) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.float32)


def _fake_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    images, rows, points = logits.shape
    return logits.new_empty(images, rows, 2, 2 * points, dtype=torch.bfloat16), logits.new_empty(images, rows, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.height, ctx.width = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *tensors)


def _autograd(ctx: Any, grad_cross_entropy: Tensor, grad_dice: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grad = torch.ops.mask2former.point_losses_backward(grad_cross_entropy, grad_dice, *saved, ctx.height, ctx.width)
    return grad, None, None, None, None, None, None


def _autograd_twice(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("the mask losses have no second derivatives, as PyTorch's grid_sample has none")


register_ops(
    Op(_SCHEMAS[0], _draw, _fake_draw),
    Op(_SCHEMAS[1], _compare, _fake_compare, _autograd, _setup),
    Op(_SCHEMAS[2], _compare_backward, _fake_compare_backward, _autograd_twice),
    Op(_SCHEMAS[3], _terms, _fake_terms),
)
