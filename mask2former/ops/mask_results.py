"""From the mask logits of a network to results, without masks of the output's size in floating point.

Four ops, of which CUDA has kernels (`csrc/cuda/mask_results.cu`, `best_classes.cu`) and every other device runs PyTorch
code (`mask_reference`): binary masks, packed or not, with their areas, scores and boxes; the panoptic winner of each
pixel; the best class of each pixel; some rows of resized masks. All resize bilinearly as the reference does: to the
padded size of the network's input, cut to the image, to the output. They have no gradients.

Sizes are (h, w): `padded` of the network's input, `image` of the image in it, `output` of the results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import mask_reference
from .mask_reference import UNIT, Size, resize_masks
from .ms_deform_attn import backend
from .registration import Op, register_ops

__all__ = [
    "MAX_CLASSES",
    "MAX_MASKS",
    "UNIT",
    "best_classes",
    "binary_masks",
    "panoptic_argmax",
    "resize_masks",
    "resize_rows",
    "takes",
]

# What the kernels on CUDA take.
MAX_MASKS = 4000
MAX_CLASSES = 160
_MAX_EDGE = 2**17

_SIZES = "SymInt[] padded, SymInt[] image, SymInt[] output"
_SCHEMAS = (
    f"binary_masks(Tensor logits, Tensor queries, {_SIZES}, bool packed) -> (Tensor, Tensor)",
    f"panoptic_argmax(Tensor logits, Tensor weights, {_SIZES}) -> (Tensor, Tensor)",
    f"best_classes(Tensor logits, Tensor scores, {_SIZES}) -> Tensor",
    f"resize_rows(Tensor logits, {_SIZES}, SymInt begin, SymInt end, bool as_probability) -> Tensor",
)


def takes(logits: Tensor, output: Size) -> bool:
    """Return whether the ops take so many queries and so large an output (N <= 4000, edges of at most 131,072)."""
    return len(logits) <= MAX_MASKS and max(output) <= _MAX_EDGE


def binary_masks(
    logits: Tensor, queries: Tensor, padded: Size, image: Size, output: Size, packed: bool
) -> tuple[Tensor, Tensor]:
    """Return the binary masks of some queries at the size of the output, and numbers of each.

    Args:
        logits: (Q, H4, W4), before the sigmoid, any floating point type; fp32 is computed with.
        queries: int64 (N,), rows of `logits`; masks of negative ones are empty, and cost nothing.
        padded, image, output: see above.
        packed: eight pixels in a byte.

    Returns:
        Masks, True where the resized logit is positive: bool (N, h, w), or packed uint8 (N, h, ceil(w / 8)) with the
        first pixel in the lowest bit (`np.unpackbits(..., bitorder="little")`). And int64 (N, 6): area in pixels, sum
        of the probabilities inside the mask in units of 2^-32 (`UNIT`), and box left, top, right, bottom, the last two
        exclusive; w, h, 0, 0 where a mask is empty.

    Raises:
        ValueError: shapes or sizes that do not fit, or more than the ops take (`takes`).
    """
    _check(logits, padded, image, output)
    if queries.dim() != 1 or queries.dtype != torch.int64:
        raise ValueError(f"queries must be int64 (N,), got {queries.dtype} {tuple(queries.shape)}")
    return _call("binary_masks", logits.device)(logits, queries, [*padded], [*image], [*output], packed)


def panoptic_argmax(logits: Tensor, weights: Tensor, padded: Size, image: Size, output: Size) -> tuple[Tensor, Tensor]:
    """Return for each pixel the query with the largest product of weight and probability, and numbers of each query.

    Of equal queries the first one wins. Inside a mask the probability is at least one half.

    Args:
        logits: (Q, H4, W4), before the sigmoid.
        weights: float (Q,); queries with negative weight take no part.
        padded, image, output: see above.

    Returns:
        int32 (h, w): the winner, -1 outside its mask. And int64 (Q, 3): pixels of the mask, pixels that the query wins,
        those of them inside its mask.

    Raises:
        ValueError: as `binary_masks`.
    """
    _check(logits, padded, image, output)
    if weights.shape != logits.shape[:1]:
        raise ValueError(f"weights must be ({len(logits)},), one for each query, got {tuple(weights.shape)}")
    return _call("panoptic_argmax", logits.device)(logits, weights, [*padded], [*image], [*output])


def best_classes(logits: Tensor, scores: Tensor, padded: Size, image: Size, output: Size) -> Tensor:
    """Return for each pixel the class with the largest sum over queries of class score x mask probability.

    Args:
        logits: (Q, H4, W4), before the sigmoid.
        scores: (K, Q), at most 1; K at most 160 (`MAX_CLASSES`).
        padded, image, output: see above.

    Returns:
        uint8 (h, w). Sums are as exact as in fp32; of equal ones the first class is taken.

    Raises:
        ValueError: as `binary_masks`.
    """
    _check(logits, padded, image, output)
    if scores.dim() != 2 or scores.shape[1] != len(logits) or not 1 <= len(scores) <= MAX_CLASSES:
        given = tuple(scores.shape)
        raise ValueError(
            f"scores must be (K, {len(logits)}), of 1 to {MAX_CLASSES} classes for each query, got {given}"
        )
    labels: Tensor = _call("best_classes", logits.device)(logits, scores, [*padded], [*image], [*output])
    return labels


def resize_rows(
    logits: Tensor, padded: Size, image: Size, output: Size, begin: int, end: int, as_probability: bool = False
) -> Tensor:
    """Return rows [begin, end) of the resized masks, fp32 (N, end - begin, w), through the sigmoid if asked for.

    Raises:
        ValueError: as `binary_masks`, or rows outside the output.
    """
    _check(logits, padded, image, output)
    if not 0 <= begin < end <= output[0]:
        raise ValueError(f"rows [{begin}, {end}) are not inside an output of height {output[0]}")
    return _call("resize_rows", logits.device)(logits, [*padded], [*image], [*output], begin, end, as_probability)


def _check(logits: Tensor, padded: Size, image: Size, output: Size) -> None:
    if logits.dim() != 3 or not logits.shape[1] * logits.shape[2] or not logits.dtype.is_floating_point:
        raise ValueError(f"logits must be float (N, H4, W4), got {logits.dtype} {tuple(logits.shape)}")
    for name, size in (("padded", padded), ("image", image), ("output", output)):
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"{name} must be a size (h, w) of at least one pixel, got {tuple(size)}")
    if image[0] > padded[0] or image[1] > padded[1]:
        raise ValueError(f"image {tuple(image)} must lie inside padded {tuple(padded)}")
    if not takes(logits, output):
        raise ValueError(
            f"{len(logits)} masks of {output[0]} x {output[1]} pixels: at most {MAX_MASKS} masks with edges of at "
            f"most {_MAX_EDGE} pixels"
        )


def _call(name: str, device: torch.device) -> Callable[..., Any]:
    """Return the op, or where no kernels are compiled the PyTorch code, which torch.compile and torch.export trace."""
    if backend(device.type) == "pytorch":
        function: Callable[..., Any] = getattr(mask_reference, name)
        return function
    op: Callable[..., Any] = getattr(torch.ops.mask2former, name).default
    return op


def _fake_binary_masks(
    logits: Tensor, queries: Tensor, padded: Size, image: Size, output: Size, packed: bool
) -> tuple[Tensor, Tensor]:
    columns = (output[1] + 7) // 8 if packed else output[1]
    masks = logits.new_empty(len(queries), output[0], columns, dtype=torch.uint8 if packed else torch.bool)
    return masks, logits.new_empty(len(queries), 6, dtype=torch.int64)


def _fake_panoptic_argmax(
    logits: Tensor, weights: Tensor, padded: Size, image: Size, output: Size
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(*output, dtype=torch.int32), logits.new_empty(len(logits), 3, dtype=torch.int64)


def _fake_best_classes(logits: Tensor, scores: Tensor, padded: Size, image: Size, output: Size) -> Tensor:
    return logits.new_empty(*output, dtype=torch.uint8)


def _fake_resize_rows(
    logits: Tensor, padded: Size, image: Size, output: Size, begin: int, end: int, as_probability: bool
) -> Tensor:
    return logits.new_empty(len(logits), end - begin, output[1], dtype=torch.float32)


def _op(schema: str, fake: Callable[..., Any]) -> Op:
    return Op(schema, getattr(mask_reference, schema.partition("(")[0]), fake)


_FAKES: tuple[Callable[..., Any], ...] = (
    _fake_binary_masks,
    _fake_panoptic_argmax,
    _fake_best_classes,
    _fake_resize_rows,
)
register_ops(*(_op(schema, fake) for schema, fake in zip(_SCHEMAS, _FAKES, strict=True)))
