"""Results of one image, made on a GPU from class scores and mask logits without a look at any number.

Queries are selected by comparisons on the device, with a fixed number of slots, so everything is launched at once (and
a CUDA graph can hold it). Masks are resized, compared and counted in one pass by the ops of `ops.mask_results`: nothing
of the output's size exists in floating point but a band of it for semantic segmentation. Numbers, maps and the first
masks are copied to the host without a look at them, too, so that the host makes results of an image while the device
works on the next one. It waits a second time only for an image with many masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from .device_transfer import HostCopies, in_ordinary_memory, to_device
from .label_maps import label_type
from .mask_resizing import Size
from .result_graphs import ResultGraphs
from .result_rules import Settings, best_pairs, panoptic_segments, quality_factors

# Devices that compute results this way.
_DEVICES = {"cuda"}
# Bytes of masks and scores of a band of semantic segmentation.
_BAND = 2**30
# Packed masks of up to this many bytes are copied all at once, of more only the rows of their boxes.
_COMPLETE = 2**24
# Of the packed masks, in the order of their scores, so many bytes are copied before it is known how many are needed.
_FIRST = 2**21
# Pixels of results that graphs hold: packed masks of a hundred queries take 50 MiB.
_SMALL = 2**22


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
        quality: see `postprocess`.
        graphs: launch results for the CPU as a CUDA graph, where sizes and settings come again and again.
    """

    def __init__(
        self,
        class_scores: Tensor,
        mask_logits: Tensor,
        padded: Size,
        image: Size,
        output: Size,
        s: Settings,
        quality: Tensor | None = None,
        graphs: ResultGraphs | None = None,
    ) -> None:
        self.settings, self.size = s, output if s.at_output_size else image
        inputs = {"logits": mask_logits.float().contiguous(), "scores": class_scores.float()}
        if s.things is not None:
            things = frozenset(s.things)
            s = replace(s, things=things)
            if s.objects:
                inputs["things"] = _are_things(things, class_scores.shape[1], mask_logits.device)
        factors = quality_factors(quality, s)
        if factors is not None:
            inputs["factors"] = factors
        launch = _Launch(tuple(inputs), padded, image, self.size, output, s)
        values = None
        if graphs is not None and launch.is_small(class_scores.shape[1] - 1):
            values = graphs(launch, *inputs.values())
        if values is None:
            values = launch(*inputs.values())
        self.semantic = values.get("semantic")
        self.panoptic = _Panoptic(values["id_map"], len(class_scores)) if "id_map" in values else None
        self.instances: _Instances | None = None
        if "masks" in values:
            pairs = len(values["numbers"]) - len(values["masks"]) - len(class_scores) * (self.panoptic is not None)
            on_device = _OnDevice(*(values[name] for name in ("stats", "best", "labels"))) if "best" in values else None
            self.instances = _Instances(values["masks"], pairs, on_device)
        self._on_device = values.get("numbers")
        self._copies: HostCopies | None = None
        self._numbers: Tensor | None = None
        self._maps: dict[Task, Tensor] = {}
        self._first_masks: Tensor | None = None
        self._selected: _Selected | None = None
        self._all_masks: Tensor | None = None

    def __call__(self) -> dict[str, Any]:
        """Wait for what was sent, and for masks that are missing; return the results as `postprocess` does."""
        if self._copies is None:
            self.send()
        assert self._copies is not None
        self._copies.wait()
        more = HostCopies()
        if self._send_more(more):
            more.wait()
        return self._result()

    def send(self, before: DeviceResults | None = None) -> None:
        """Send the results on their way to the CPU, as far as they are small: numbers, maps, and the first masks.

        Args:
            before: the image whose results were sent before, and are not finished yet.
        """
        copies = self._copies = HostCopies(None if before is None else before._copies)
        if self._on_device is not None:
            self._numbers = copies.add(self._on_device)
        here = self.settings.patches
        if self.semantic is not None:
            self._maps[Task.SEMANTIC] = (
                copies.add(self.semantic) if here and self.semantic.dim() == 2 else self.semantic
            )
        if self.panoptic is not None:
            self._maps[Task.PANOPTIC] = copies.add(self.panoptic.id_map) if here else self.panoptic.id_map
        if here and self.instances is not None and len(self.instances.masks):
            masks = self.instances.masks
            self._first_masks = copies.add(masks[: _FIRST // masks[0].numel()])
        copies.close()

    def _send_more(self, copies: HostCopies) -> bool:
        """Read the numbers, which are there, and send the masks that are missing; return whether there are some."""
        if self.instances is None:
            return False
        numbers = torch.empty(0) if self._numbers is None else self._numbers.cpu()
        self._selected = self.instances.select(numbers[0 if self.panoptic is None else self.panoptic.queries :])
        if not self.settings.patches:
            return False
        needed = int(self._selected.mask.max()) + 1 if len(self._selected.mask) else 0
        if self._first_masks is not None and needed <= len(self._first_masks):
            self._all_masks = self._first_masks
            return False
        masks = self.instances.masks[:needed]
        self._all_masks = copies.add(masks) if masks.numel() <= _COMPLETE else masks
        return True

    def _result(self) -> dict[str, Any]:
        maps = dict(self._maps)
        if self.settings.patches:
            types = {Task.PANOPTIC: torch.int32}
            maps = {t: x if x.dim() > 2 else in_ordinary_memory(x, types.get(t, x.dtype)) for t, x in maps.items()}
        results: dict[str, Any] = {task.output: label_map for task, label_map in maps.items()}
        if self.panoptic is not None and self._numbers is not None:
            own = self._numbers[: self.panoptic.queries].cpu()
            results[Task.PANOPTIC.output] = maps[Task.PANOPTIC], self.panoptic.segments(own, self.settings)
        if self.instances is not None and self._selected is not None:
            results[Task.INSTANCE.output] = (
                self.instances.dense(self._selected, self.size)
                if self._all_masks is None
                else _unpacked(self._all_masks, self._selected, self.size)
            )
        return results


@dataclass(frozen=True)
class _Launch:
    """What is launched for an image, as a function of the tensors; equal where the same kernels are.

    Attributes:
        names: of the arguments: "logits" (Q, H4, W4) and "scores" (Q, K + 1), fp32; perhaps "things" bool (K + 1,), and
            "factors" (Q,) of the scores of instances.
        padded, image, size, output: sizes (h, w), see `DeviceResults`; `size` of the masks.
        s: settings.
    """

    names: tuple[str, ...]
    padded: Size
    image: Size
    size: Size
    output: Size
    s: Settings

    def is_small(self, classes: int) -> bool:
        """Return whether the results, and what they are made of, are small: packed masks and maps of a usual size."""
        s = self.s
        scores = Task.SEMANTIC in s.tasks and (s.semantic_scores or not _without_sums(classes, self.size, self.output))
        return s.patches and not scores and max(math.prod(self.size), math.prod(self.output)) <= _SMALL

    def __call__(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Launch it.

        Returns:
            Of the tasks that are asked for: "semantic", see `_semantic`; "id_map" (h, w); "masks" of instances
            (N, h, w), packed or not; "numbers" int64 (., 6), those of panoptic segments and then those of instances.
            And for results that stay on the device what `_OnDevice` holds.
        """
        given, s = dict(zip(self.names, tensors, strict=True)), self.s
        logits, scores, things = given["logits"], given["scores"], given.get("things")
        values: dict[str, Tensor] = {}
        numbers: list[Tensor] = []
        if Task.PANOPTIC in s.tasks:
            values["id_map"], own = _panoptic(scores, logits, things, self.padded, self.image, self.size, s)
            numbers.append(own)
        if Task.INSTANCE in s.tasks:
            weighted = scores * given["factors"][:, None] if "factors" in given else scores
            found, own = _instances(weighted, logits, things, self.padded, self.image, self.size, s)
            values |= found
            numbers.append(own)
        if numbers:
            values["numbers"] = torch.cat(numbers) if len(numbers) > 1 else numbers[0]
        if Task.SEMANTIC in s.tasks:
            columns = scores[:, :-1].T.contiguous()
            values["semantic"] = _semantic(columns, logits, self.padded, self.image, self.size, self.output, s)
        return values


# ------------------------------------------------------------------ panoptic
@dataclass(frozen=True)
class _Panoptic:
    """Each pixel is assigned to the query with the largest class score x mask probability (MaskFormer, section 3.4)."""

    id_map: Tensor  # uint8 or int32 (h, w), the segment of each pixel; 0 without one
    queries: int

    def segments(self, numbers: Tensor, s: Settings) -> list[dict[str, Any]]:
        """Return the segments from the numbers (Q, 6) of `_panoptic`."""
        kept = numbers[:, 4].nonzero()[:, 0]
        area, won, visible, labels = numbers[kept, :4].T.tolist()
        return panoptic_segments(labels, _as_floats(numbers[kept, 5]).tolist(), area, won, visible, s)[1]


def _panoptic(
    scores: Tensor, logits: Tensor, things: Tensor | None, padded: Size, image: Size, size: Size, s: Settings
) -> tuple[Tensor, Tensor]:
    """Return the id map, and int64 (Q, 6): area, won, visible, label, whether the query takes part, score as bits."""
    best, labels = scores.max(-1)
    keep = (labels != scores.shape[1] - 1) & (best > s.object_mask_threshold)
    winner, counts = panoptic_argmax(logits, torch.where(keep, best, -1.0), padded, image, size)
    ids = segment_ids(counts, labels, keep, best, scores.shape[1], s, things)
    small = s.patches and len(scores) < 256
    id_map = map_of(winner, ids, torch.uint8 if small else torch.int32)
    return id_map, torch.column_stack((counts, labels, keep, _as_integers(best)))


def segment_ids(
    counts: Tensor,
    labels: Tensor,
    keep: Tensor,
    best: Tensor,
    classes: int,
    s: Settings,
    things: Tensor | None = None,
) -> Tensor:
    """Return the segment id of each query, int64 (Q,), as `panoptic_segments` does, on the device.

    Args:
        counts: int64 (Q, 3): pixels of the mask, pixels that the query wins, those of them inside its mask.
        labels, best: (Q,), class and score.
        keep: bool (Q,), whether the query takes part; all others get 0.
        classes: number of classes with no-object.
        s: settings.
        things: bool (classes,), which of them are things; None: as the settings say.
    """
    if not len(labels):
        return labels
    count, order = len(labels), torch.arange(len(labels), device=labels.device)
    valid = keep & (counts.amin(1) > 0)
    if s.overlap_threshold > 0:  # divided as Python does
        valid = valid & (counts[:, 1].double() / counts[:, 0].double() >= s.overlap_threshold)
    # A segment is a query, or all queries of a class of stuff; its head is the first of them.
    segment = order + classes
    if s.things is not None:
        if things is None:
            things = _are_things(frozenset(s.things), classes, labels.device)
        segment = torch.where(things[labels], segment, labels)
    first = torch.full((count + classes,), count, device=labels.device)
    first.scatter_reduce_(0, segment, torch.where(valid, order, count), "amin")
    head = first[segment].clamp(max=count - 1)
    number = (valid & (head == order)).cumsum(0)
    if s.segment_threshold > 0:
        valid = valid & (best.double() >= s.segment_threshold)[head]
    return torch.where(valid, number[head], 0)


def map_of(winner: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the ids (Q,) of the winners int32 (h, w) as a map; 0 where the winner is -1."""
    lookup = F.pad(ids, (1, 0)).to(dtype)
    return lookup.index_select(0, (winner + 1).flatten()).view(winner.shape)


# ------------------------------------------------------------------ instances
@dataclass(frozen=True)
class _Instances:
    """The `topk` best (query, class) pairs, scored by class score x mean mask probability inside the mask.

    Each query of a pair that is kept has one mask, in the order of the pairs, for all its pairs.
    """

    masks: Tensor  # (N, h, w) bool, or packed
    pairs: int
    on_device: _OnDevice | None

    def select(self, numbers: Tensor) -> _Selected:
        """Read the numbers of `_instances` on the CPU."""
        pairs, stats = numbers[: self.pairs], numbers[self.pairs :]
        kept = pairs[:, 3].nonzero()[:, 0]
        pairs, boxes = pairs[kept], stats[:, 2:] * (stats[:, :1] > 0)
        return _Selected(kept, pairs[:, 2], _as_floats(pairs[:, 0]).float(), pairs[:, 1].clone(), stats[:, 0], boxes)

    def dense(self, selected: _Selected, size: Size) -> Instances:
        """Return instances on the device, with `pred_masks`."""
        assert self.on_device is not None, "results for the CPU are not made on the device"
        there, result, device = self.on_device, Instances(size), self.masks.device
        pairs, masks = to_device(selected.pair, device), to_device(selected.mask, device)
        all_in_order = torch.equal(selected.mask, torch.arange(len(self.masks)))
        boxes = there.stats[:, 2:] * (there.stats[:, :1] > 0)
        result.pred_masks = self.masks if all_in_order else self.masks[masks]  # a view would keep all in memory
        result.pred_boxes = Boxes(boxes[masks].float())
        result.scores, result.pred_classes = there.best[pairs], there.labels[pairs]
        return result


@dataclass(frozen=True)
class _OnDevice:
    """What results on the device are made of."""

    stats: Tensor  # int64 (N, 6) of `binary_masks`
    best: Tensor  # fp32 (topk,), scores
    labels: Tensor  # int64 (topk,)


def _instances(
    scores: Tensor, logits: Tensor, things: Tensor | None, padded: Size, image: Size, size: Size, s: Settings
) -> tuple[dict[str, Tensor], Tensor]:
    """Return "masks", where they stay on the device also what `_OnDevice` holds, and the numbers int64 (topk + N, 6).

    Numbers are of each pair: score as bits, label, mask, whether it is kept, 0, 0; then the `stats` of each mask.
    """
    best, labels, rows = best_pairs(scores, s.topk)
    keep = best >= s.score_threshold  # the mask score is at most 1
    if Task.PANOPTIC in s.tasks and things is not None:
        # With panoptic results, stuff classes are dropped after the top-k, as in the reference.
        keep = keep & things[labels]
    queries, mask = _one_mask_each(rows, keep, len(scores))
    masks, stats = binary_masks(logits, queries, padded, image, size, packed=s.patches)
    inside = (stats[:, 1].double() / UNIT).float() / (stats[:, 0] + 1e-6)
    final = best * inside[mask]
    if s.score_threshold > 0:
        keep = keep & (final >= s.score_threshold)
    pairs = torch.stack((_as_integers(final), labels, mask, keep, *2 * [torch.zeros_like(labels)]), 1)
    values = {"masks": masks}
    if not s.patches:
        values |= {"stats": stats, "best": final, "labels": labels}
    return values, torch.cat((pairs, stats))


@dataclass(frozen=True)
class _Selected:
    """The kept pairs of an image, on the CPU."""

    pair: Tensor  # int64 (n,), positions among the pairs
    mask: Tensor  # int64 (n,), their masks
    scores: Tensor  # fp32 (n,)
    labels: Tensor  # int64 (n,)
    areas: Tensor  # int64 (N,), of the masks
    boxes: Tensor  # int64 (N, 4)


def _unpacked(masks: Tensor, selected: _Selected, size: Size) -> Instances:
    """Return instances on the CPU, with `pred_patches`, of packed masks (N, h, ceil(w / 8)), perhaps on the device."""
    masks = masks.cpu() if masks.numel() <= _COMPLETE else masks
    numbers = selected.mask.unique().tolist()
    rows = {}
    for i, (left, top, right, bottom) in zip(numbers, selected.boxes[numbers].tolist(), strict=True):
        strip = masks[i, top:bottom].cpu().numpy()
        rows[i] = strip[:, left // 8 : -(-right // 8)].copy()  # without the rest, which would stay in memory
    boxes, areas = selected.boxes[selected.mask], selected.areas[selected.mask]
    result = Instances(size)
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
    if not s.semantic_scores and _without_sums(classes, size, output):
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


def _without_sums(classes: int, size: Size, output: Size) -> bool:
    """Return whether the best class of a pixel is found without sums of all classes, gigabytes for large images."""
    return size == output and classes <= MAX_CLASSES


def _bands(size: Size, planes: int) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 of some rows, whose `planes` of fp32 fit into a band."""
    rows = max(1, _BAND // (4 * planes * size[1]))
    return ((begin, min(begin + rows, size[0])) for begin in range(0, size[0], rows))
