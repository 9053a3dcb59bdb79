"""Results of one image, made on a GPU from class scores and mask logits without a look at any number.

Queries are selected by comparisons on the device, with a fixed number of slots, so everything is launched at once (and
a CUDA graph can hold it). Masks are resized, compared and counted in one pass by the ops of `ops.mask_results`: nothing
of the output's size exists in floating point but a band of it for semantic segmentation. `finish` then waits once for a
few numbers, and makes results of what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..ops import backend
from ..ops.mask_results import (
    MAX_CLASSES,
    MAX_MASKS,
    UNIT,
    best_classes,
    binary_masks,
    panoptic_argmax,
    resize_rows,
    takes,
)
from ..structures.packed_masks import PackedMasks
from ..structures.task import Task
from .device_transfer import to_device
from .label_maps import label_type
from .mask_resizing import Size
from .result_rules import Settings, best_pairs, panoptic_segments

# Devices that compute results this way.
_DEVICES = {"cuda"}
# Bytes of masks and scores of a band of semantic segmentation.
_BAND = 2**30
# Copies up to this many bytes go through pinned memory, where they need not be waited for one by one.
_PINNED = 2**24


def are_possible(class_scores: Tensor, mask_logits: Tensor, size: Size) -> bool:
    """Return whether results can be made this way: on a GPU, of sizes that the ops take, without gradients.

    Without compiled ops it would take longer than by parts, because each result resizes the masks again.
    """
    if mask_logits.is_cuda and backend("cuda") != "compiled":
        return False
    if mask_logits.device.type not in _DEVICES or not takes(mask_logits, size) or class_scores.shape[1] > MAX_MASKS:
        return False
    return not (torch.is_grad_enabled() and (class_scores.requires_grad or mask_logits.requires_grad))


class DeviceResults:
    """The results of one image on their way; the constructor launches all that does not depend on numbers.

    Args:
        class_scores: (Q, K + 1), after the softmax.
        mask_logits: (Q, H4, W4), before the sigmoid.
        padded, image, output: sizes (h, w) of the network's input, of the image in it, and of the results.
        s: settings.
    """

    def __init__(
        self, class_scores: Tensor, mask_logits: Tensor, padded: Size, image: Size, output: Size, s: Settings
    ) -> None:
        self.settings, self.size = s, output if s.at_output_size else image
        scores, logits = class_scores.float(), mask_logits.float().contiguous()
        self.semantic: Tensor | None = None
        self.panoptic: _Panoptic | None = None
        self.instances: _Instances | None = None
        if Task.PANOPTIC in s.tasks:
            self.panoptic = _Panoptic.launch(scores, logits, padded, image, self.size, s)
        if Task.INSTANCE in s.tasks:
            self.instances = _Instances.launch(scores, logits, padded, image, self.size, s)
        if Task.SEMANTIC in s.tasks:
            self.semantic = _semantic(scores[:, :-1].T.contiguous(), logits, padded, image, self.size, output, s)
        self._numbers: list[_Copy] = []

    def start_copy(self) -> DeviceResults:
        """Send the numbers on their way to the CPU; not part of what a CUDA graph holds."""
        self._numbers = [_Copy(part.numbers) for part in (self.panoptic, self.instances) if part is not None]
        return self

    def finish(self) -> dict[str, Any]:
        """Wait for the numbers, and return the results as `postprocess` does."""
        s, numbers = self.settings, [copy.wait() for copy in self._numbers or self.start_copy()._numbers]
        maps: dict[Task, Tensor] = {}
        segments: list[dict[str, Any]] = []
        if self.semantic is not None:
            maps[Task.SEMANTIC] = self.semantic
        if self.panoptic is not None:
            ids, segments = self.panoptic.segments(numbers[0], s)
            maps[Task.PANOPTIC] = self.panoptic.map_of(ids)
        found: Instances | _PackedInstances | None = None
        if self.instances is not None:
            selected = self.instances.select(numbers[-1])
            found = (self.instances.packed if s.patches else self.instances.dense)(selected, self.size)
        if s.patches:  # all copies are started before the first is waited for
            copies = {task: _Copy(label_map) for task, label_map in maps.items() if label_map.dim() == 2}
            maps |= {task: copy.kept() for task, copy in copies.items()}
        results: dict[str, Any] = {task.output: label_map for task, label_map in maps.items()}
        if self.panoptic is not None:
            results[Task.PANOPTIC.output] = maps[Task.PANOPTIC], segments
        if found is not None:
            results[Task.INSTANCE.output] = found.wait() if isinstance(found, _PackedInstances) else found
        return results


class _Copy:
    """A tensor on its way to the CPU: through pinned memory where it is small, else when it is waited for."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._done: torch.cuda.Event | None = None
        if tensor.is_cuda and tensor.numel() * tensor.element_size() <= _PINNED:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """Return the tensor on the CPU, in memory that is to be given back soon."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensor.cpu()

    def kept(self) -> Tensor:
        """Return the tensor on the CPU, in ordinary memory: pinned memory is scarce, and results may be kept."""
        host = self.wait()
        return host.clone() if self._done is not None else host


# ------------------------------------------------------------------ panoptic
@dataclass(frozen=True)
class _Panoptic:
    """Each pixel is assigned to the query with the largest class score x mask probability (MaskFormer, section 3.4)."""

    winner: Tensor  # int32 (h, w), -1 outside the winner's mask
    numbers: Tensor  # int64 (Q, 6): area, won, visible, label, whether the query takes part, bits of the score as fp64

    @classmethod
    def launch(cls, scores: Tensor, logits: Tensor, padded: Size, image: Size, size: Size, s: Settings) -> _Panoptic:
        best, labels = scores.max(-1)
        keep = (labels != scores.shape[1] - 1) & (best > s.object_mask_threshold)
        winner, counts = panoptic_argmax(logits, torch.where(keep, best, -1.0), padded, image, size)
        return cls(winner, torch.column_stack((counts, labels, keep, _as_integers(best))))

    def segments(self, numbers: Tensor, s: Settings) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the segment id of each query, of those without a segment 0, and the segments."""
        kept = numbers[:, 4].nonzero()[:, 0]
        area, won, visible, labels = numbers[kept, :4].T.tolist()
        found, segments = panoptic_segments(labels, _as_floats(numbers[kept, 5]).tolist(), area, won, visible, s)
        ids = [0] * len(numbers)
        for query, number in zip(kept.tolist(), found, strict=True):
            ids[query] = number
        return ids, segments

    def map_of(self, ids: Sequence[int]) -> Tensor:
        """Return int32 (h, w), the segment of each pixel."""
        lookup = to_device(torch.tensor([0, *ids], dtype=torch.int32), self.winner.device)
        return lookup.index_select(0, (self.winner + 1).flatten()).view(self.winner.shape)


# ------------------------------------------------------------------ instances
@dataclass(frozen=True)
class _Instances:
    """The `topk` best (query, class) pairs, scored by class score x mean mask probability inside the mask.

    Each query of a pair that is kept has one mask, in the order of the pairs, for all its pairs.
    """

    masks: Tensor  # (N, h, w) bool, or packed
    stats: Tensor  # int64 (N, 6) of `binary_masks`
    scores: Tensor  # fp32 (topk,)
    labels: Tensor  # int64 (topk,)
    numbers: Tensor  # int64 (topk + N, 6): score bits, label, mask, whether the pair is kept, 0, 0; then `stats`

    @classmethod
    def launch(cls, scores: Tensor, logits: Tensor, padded: Size, image: Size, size: Size, s: Settings) -> _Instances:
        best, labels, rows = best_pairs(scores, s.topk)
        keep = best >= s.score_threshold  # the mask score is at most 1
        if Task.PANOPTIC in s.tasks and s.things is not None:
            # With panoptic results, stuff classes are dropped after the top-k, as in the reference.
            keep = keep & _are_things(frozenset(s.things), scores.shape[1] - 1, scores.device)[labels]
        queries, mask = _one_mask_each(rows, keep, len(scores))
        masks, stats = binary_masks(logits, queries, padded, image, size, packed=s.patches)
        inside = (stats[:, 1].double() / UNIT).float() / (stats[:, 0] + 1e-6)
        final = best * inside[mask]
        if s.score_threshold > 0:
            keep = keep & (final >= s.score_threshold)
        pairs = torch.stack((_as_integers(final), labels, mask, keep, *2 * [torch.zeros_like(labels)]), 1)
        return cls(masks, stats, final, labels, torch.cat((pairs, stats)))

    def select(self, numbers: Tensor) -> _Selected:
        """Read the numbers on the CPU."""
        pairs, stats = numbers[: len(self.scores)], numbers[len(self.scores) :]
        kept = pairs[:, 3].nonzero()[:, 0]
        pairs, boxes = pairs[kept], stats[:, 2:] * (stats[:, :1] > 0)
        return _Selected(kept, pairs[:, 2], _as_floats(pairs[:, 0]).float(), pairs[:, 1].clone(), stats[:, 0], boxes)

    def packed(self, selected: _Selected, size: Size) -> _PackedInstances:
        """Start to copy packed masks."""
        return _PackedInstances(self.masks, selected, size)

    def dense(self, selected: _Selected, size: Size) -> Instances:
        """Return instances on the device, with `pred_masks`."""
        result, device = Instances(size), self.scores.device
        pairs, masks = to_device(selected.pair, device), to_device(selected.mask, device)
        all_in_order = torch.equal(selected.mask, torch.arange(len(self.masks)))
        boxes = self.stats[:, 2:] * (self.stats[:, :1] > 0)
        result.pred_masks = self.masks if all_in_order else self.masks[masks]  # a view would keep all in memory
        result.pred_boxes = Boxes(boxes[masks].float())
        result.scores, result.pred_classes = self.scores[pairs], self.labels[pairs]
        return result


@dataclass(frozen=True)
class _Selected:
    """The kept pairs of an image, on the CPU."""

    pair: Tensor  # int64 (n,), positions among the pairs
    mask: Tensor  # int64 (n,), their masks
    scores: Tensor  # fp32 (n,)
    labels: Tensor  # int64 (n,)
    areas: Tensor  # int64 (N,), of the masks
    boxes: Tensor  # int64 (N, 4)


class _PackedInstances:
    """Packed masks on their way to the CPU: all at once where they are small, else the rows of each mask's box."""

    def __init__(self, masks: Tensor, selected: _Selected, size: Size) -> None:
        self._selected, self._size = selected, size
        self._masks = masks[: int(selected.mask.max()) + 1 if len(selected.mask) else 0]
        self._copy = _Copy(self._masks) if self._masks.numel() <= _PINNED else None

    def wait(self) -> Instances:
        """Return instances on the CPU, with `pred_patches`."""
        selected, result = self._selected, Instances(self._size)
        host = None if self._copy is None else self._copy.wait()
        numbers = selected.mask.unique().tolist()
        rows = {}
        for i, (left, top, right, bottom) in zip(numbers, selected.boxes[numbers].tolist(), strict=True):
            strip = (self._masks[i, top:bottom].cpu() if host is None else host[i, top:bottom]).numpy()
            rows[i] = strip[:, left // 8 : -(-right // 8)].copy()  # without the rest, which would stay in memory
        boxes, areas = selected.boxes[selected.mask], selected.areas[selected.mask]
        result.pred_patches = PackedMasks([rows[i] for i in selected.mask.tolist()], boxes.numpy(), areas.numpy())
        result.pred_boxes = Boxes(boxes.float())
        result.scores, result.pred_classes = selected.scores, selected.labels
        return result


def _one_mask_each(rows: Tensor, keep: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give each query of a kept pair one mask, in the order of the pairs.

    Args:
        rows: int64 (P,), queries of the pairs.
        keep: bool (P,).
        count: number of queries.

    Returns:
        int64 (min(P, count),), the query of each mask, -1 for masks that are left over; and int64 (P,), the mask of
        each pair (any, where the pair is not kept).
    """
    pairs = len(rows)
    order = torch.arange(pairs, device=rows.device)
    first = torch.full((count,), pairs, device=rows.device)
    first.scatter_reduce_(0, rows, torch.where(keep, order, pairs), "amin")  # the first pair of each query
    is_first = keep & (first[rows] == order)
    number = is_first.cumsum(0) - 1
    slots = min(pairs, count)
    queries = torch.full((slots + 1,), -1, device=rows.device)
    queries.scatter_(0, torch.where(is_first, number, slots), rows)  # the last place takes what is not kept
    mask = number[first[rows].clamp(max=pairs - 1)].clamp(min=0)
    return queries[:slots], mask


@lru_cache(maxsize=16)
def _are_things(things: frozenset[int], classes: int, device: torch.device) -> Tensor:
    return to_device(torch.tensor([k in things for k in range(classes)]), device)


def _as_integers(values: Tensor) -> Tensor:
    """Return floats as the bits of fp64, so that they travel with integers."""
    return values.double().view(torch.int64)


def _as_floats(bits: Tensor) -> Tensor:
    return bits.contiguous().view(torch.float64)


# ------------------------------------------------------------------ semantic
def _semantic(
    scores: Tensor, logits: Tensor, padded: Size, image: Size, size: Size, output: Size, s: Settings
) -> Tensor:
    """Sum over queries of class score x mask probability (MaskFormer, section 3.4); not normalized over classes.

    Args:
        scores: (K, Q), contiguous.
        logits: (Q, H4, W4).
        padded, image, size: of the masks whose sums are the scores.
        output: size of the result, to which scores of another size are resized.
        s: settings.

    Returns:
        Scores (K, h, w), or the class with the best one (h, w). Products are written where they belong, which also
        keeps them in fp32 under autocast.
    """
    classes = len(scores)
    if not s.semantic_scores and size == output and classes <= MAX_CLASSES:
        return best_classes(logits, scores, padded, image, output)
    sums = scores.new_empty(classes, *size)
    for begin, end in _bands(size, sum(scores.shape)):
        masks = resize_rows(logits, padded, image, size, begin, end, as_probability=True)
        torch.mm(scores, masks.flatten(1), out=sums[:, begin:end].flatten(1))
    if s.semantic_scores:
        return sums if size == output else F.interpolate(sums[None], output, mode="bilinear", align_corners=False)[0]
    labels = scores.new_empty(output, dtype=label_type(classes))
    for begin, end in _bands(output, classes):
        labels[begin:end] = resize_rows(sums, output, output, output, begin, end).argmax(0)
    return labels


def _bands(size: Size, planes: int) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 of some rows, whose `planes` of fp32 fit into a band."""
    rows = max(1, _BAND // (4 * planes * size[1]))
    return ((begin, min(begin + rows, size[0])) for begin in range(0, size[0], rows))
