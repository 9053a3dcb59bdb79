"""Semantic, instance and panoptic results from the class and mask logits of one image (Mask2Former, MaskFormer).

Masks are large: queries are selected first, by their class scores on the CPU; each selected mask is then resized once,
a few at a time, for all results together. On a GPU `device_results` does the same without a look at the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..structures.masks import Patch, boxes_from_masks, boxes_from_patches
from ..structures.task import Task
from .device_results import DeviceResults, are_possible
from .device_transfer import to_cpu, to_device
from .label_maps import first_highest, label_type, labels_of_masks
from .mask_resizing import ResizedMasks, Size
from .result_graphs import ResultGraphs
from .result_rules import Settings, best_pairs, panoptic_segments, quality_factors

# Masks that are resized together have about this many pixels.
_CHUNK = 2**25
# On a GPU, patches take the place of dense masks from this many pixels of all masks on: each waits for the device.
_DENSE_ON_GPU = 2**28


def postprocess(
    class_scores: Tensor,
    host_scores: Tensor | None,
    mask_logits: Tensor,
    padded: Size,
    image: Size,
    output: Size,
    s: Settings,
    own: Mapping[Task, Callable[[Tensor], Any]] | None = None,
    quality: Tensor | None = None,
) -> dict[str, Any]:
    """Compute all requested results of one image.

    Args:
        class_scores: (Q, K + 1), after the softmax, on the device.
        host_scores: the same on the CPU, where the caller has them.
        mask_logits: (Q, H4, W4), before the sigmoid.
        padded, image, output: sizes (h, w) of the network's input, of the image in it, and of the results.
        s: settings.
        own: other computations of results, of mask logits (Q, h, w) at the size of image or output.
        quality: (Q,) predicted quality of the masks, in [0, 1], on the device, where there is one. Instances are
            selected and scored by class score x quality ^ `s.quality_power`; other results do not use it.

    Returns:
        The requested ones of "sem_seg" (scores (K, h, w), or classes (h, w) without `s.semantic_scores`),
        "panoptic_seg" (int32 (h, w), segments) and "instances".
    """
    return begin(class_scores, host_scores, mask_logits, padded, image, output, s, own, quality=quality)()


def begin(
    class_scores: Tensor,
    host_scores: Tensor | None,
    mask_logits: Tensor,
    padded: Size,
    image: Size,
    output: Size,
    s: Settings,
    own: Mapping[Task, Callable[[Tensor], Any]] | None = None,
    before: Callable[[], dict[str, Any]] | None = None,
    quality: Tensor | None = None,
    graphs: ResultGraphs | None = None,
) -> Callable[[], dict[str, Any]]:
    """Start what `postprocess` does, and return the function that waits for it and returns the results.

    Images of a batch are begun one after another before the first is waited for, so that the device goes on. `before`:
    what was returned for the image before this one. `graphs`: see `DeviceResults`.
    """
    size = output if s.at_output_size else image
    if not own and are_possible(class_scores, mask_logits, size):
        results = DeviceResults(class_scores, mask_logits, padded, image, output, s, quality, graphs)
        results.send(before if isinstance(before, DeviceResults) else None)
        return results
    return partial(_by_parts, class_scores, host_scores, mask_logits, padded, image, output, s, own or {}, quality)


def _by_parts(
    class_scores: Tensor,
    host_scores: Tensor | None,
    mask_logits: Tensor,
    padded: Size,
    image: Size,
    output: Size,
    s: Settings,
    own: Mapping[Task, Callable[[Tensor], Any]],
    quality: Tensor | None,
) -> dict[str, Any]:
    if host_scores is None:
        host_scores = to_cpu(class_scores) if s.objects else class_scores
    scores_of = dict.fromkeys(_PARTS, host_scores)
    factors = quality_factors(quality, s)
    if factors is not None and Task.INSTANCE in s.tasks:
        scores_of[Task.INSTANCE] = host_scores.float() * to_cpu(factors)[:, None]
    parts: dict[Task, _Part] = {
        task: part(class_scores, scores_of[task], s) for task, part in _PARTS.items() if task in s.tasks
    }
    parts |= {task: _Own(len(class_scores), compute) for task, compute in own.items() if task in s.tasks}
    size = output if s.at_output_size else image
    semantic = parts.get(Task.SEMANTIC)
    if isinstance(semantic, _Semantic):
        semantic.labels_only = not s.semantic_scores and size == output
    selected = sorted(set().union(*(part.queries for part in parts.values())))
    for part in parts.values():
        part.start(size)
    for queries, masks in _chunks(mask_logits, selected, padded, image, size):
        for part in parts.values():
            part.add(queries, masks)
    results: dict[str, Any] = {task.output: part.finish() for task, part in parts.items()}
    if Task.SEMANTIC in s.tasks and size != output:
        scores = F.interpolate(results[Task.SEMANTIC.output][None], output, mode="bilinear", align_corners=False)[0]
        as_scores = s.semantic_scores or Task.SEMANTIC in own
        results[Task.SEMANTIC.output] = scores if as_scores else first_highest(scores).to(label_type(len(scores)))
    return results


def result_of_masks(task: Task, class_scores: Tensor, mask_logits: Tensor, s: Settings) -> Any:
    """Compute one result of masks that have its size.

    Args:
        task: the result.
        class_scores: (Q, K + 1), after the softmax.
        mask_logits: (Q, h, w), before the sigmoid.
        s: settings.
    """
    part = _PARTS[task](class_scores, to_cpu(class_scores), s)
    size = (int(mask_logits.shape[-2]), int(mask_logits.shape[-1]))
    part.start(size)
    for start in range(0, len(mask_logits), step := max(1, _CHUNK // max(size[0] * size[1], 1))):
        rows = range(start, min(start + step, len(mask_logits)))
        part.add(rows, ResizedMasks.given(mask_logits[start : rows.stop].float()))
    return part.finish()


def postprocess_clip(
    host_scores: Tensor, mask_logits: Tensor, padded: Size, image: Size, output: Size, topk: int, threshold: float
) -> dict[str, Any]:
    """Compute the instances of a clip (arXiv 2112.10764): the best (query, class) pairs, scored by the class score.

    Only selected masks are resized, frame by frame, and copied to the CPU: the device holds the masks of one frame.

    Args:
        host_scores: (Q, K + 1), after the softmax, on the CPU.
        mask_logits: (Q, T, H4, W4), before the sigmoid.
        padded, image, output: as for `postprocess`.
        topk: number of instances; those whose score is below `threshold` are left out.

    Returns:
        {"image_size": output, "pred_scores", "pred_labels", "pred_masks": list of bool (T, h, w)}; instances of one
        query share the memory of their mask.
    """
    scores, labels, rows = best_pairs(host_scores, topk)
    keep = scores >= threshold
    queries = sorted(set(rows[keep].tolist()))
    masks = torch.zeros(len(queries), mask_logits.shape[1], *output, dtype=torch.bool)
    index_of = {q: i for i, q in enumerate(queries)}
    for t in range(mask_logits.shape[1]):
        for run, resized in _chunks(mask_logits[:, t], queries, padded, image, output):
            masks[index_of[run[0]] : index_of[run[-1]] + 1, t] = to_cpu(resized.complete > 0)
    return {
        "image_size": output,
        "pred_scores": scores[keep].tolist(),
        "pred_labels": labels[keep].tolist(),
        "pred_masks": [masks[index_of[q]] for q in rows[keep].tolist()],
    }


def _chunks(
    logits: Tensor, selected: Sequence[int], padded: Size, image: Size, size: Size
) -> Iterator[tuple[Sequence[int], ResizedMasks]]:
    chunk = max(1, _CHUNK // max(padded[0] * padded[1], size[0] * size[1]))
    for start in range(0, len(selected), chunk):
        queries = selected[start : start + chunk]
        index = to_device(torch.tensor(queries), logits.device)
        yield queries, ResizedMasks(logits[index].float(), padded, image, size)


def _rows(queries: Sequence[int], selected: Sequence[int], device: torch.device) -> tuple[list[int], Tensor]:
    """Return positions, in both lists, of `selected` queries that are in `queries`; the latter are on the device."""
    index_of = {q: i for i, q in enumerate(queries)}
    positions = [i for i, q in enumerate(selected) if q in index_of]
    return positions, to_device(torch.tensor([index_of[selected[i]] for i in positions], dtype=torch.int64), device)


class _Semantic:
    """Sum over queries of class score x mask probability (MaskFormer, section 3.4); not normalized over classes."""

    def __init__(self, class_scores: Tensor, host_scores: Tensor, s: Settings) -> None:
        self.scores = class_scores[:, :-1].float()
        self.queries: Sequence[int] = range(len(class_scores))
        self.labels_only = False  # `finish` returns the best class (h, w), not scores (K, h, w)

    def start(self, size: Size) -> None:
        self.size = size
        self.result: Tensor | None = None

    def add(self, queries: Sequence[int], masks: ResizedMasks) -> None:
        if self.labels_only and len(queries) == len(self.queries):
            self.result = labels_of_masks(self.scores, masks.complete)
            return
        if self.result is None:
            self.result = self.scores.new_zeros(self.scores.shape[1], *self.size)
        # Semantic segmentation uses every query, so a chunk is a contiguous range of queries.
        scores = self.scores[queries[0] : queries[-1] + 1]
        self.result.flatten(1).addmm_(scores.T, masks.complete.sigmoid().flatten(1))

    def finish(self) -> Tensor:
        if self.result is None:  # no queries
            self.result = self.scores.new_zeros(self.scores.shape[1], *self.size)
        if self.labels_only and self.result.dim() == 3:
            self.result = first_highest(self.result).to(label_type(len(self.result)))
        return self.result


class _Instance:
    """The `topk` best (query, class) pairs, scored by class score x mean mask probability inside the mask.

    With predicted mask quality, the class scores on the CPU have been multiplied by it.
    """

    def __init__(self, class_scores: Tensor, host_scores: Tensor, s: Settings) -> None:
        self.device, self.threshold, self.may_crop = class_scores.device, s.score_threshold, s.patches
        best, labels, rows = best_pairs(host_scores, s.topk)
        # With panoptic results, stuff classes are dropped after the top-k, as in the reference.
        keep = torch.tensor([Task.PANOPTIC not in s.tasks or s.is_thing(c) for c in labels.tolist()], dtype=torch.bool)
        keep &= best >= self.threshold  # the mask score is at most 1
        self.scores, self.labels, self.rows = best[keep], labels[keep], rows[keep]
        self.queries: Sequence[int] = sorted(set(self.rows.tolist()))

    def start(self, size: Size) -> None:
        count = len(self.queries)
        self.size = size
        self.patches: list[Patch] | None = None
        self.mask_scores = torch.zeros(count, device=self.device)
        if self.may_crop and (self.device.type != "cuda" or count * size[0] * size[1] > _DENSE_ON_GPU):
            self.patches = []
            self.mask_scores = torch.zeros(count)
        else:
            self.masks = torch.zeros(count, *size, dtype=torch.bool, device=self.device)

    def add(self, queries: Sequence[int], masks: ResizedMasks) -> None:
        positions, rows = _rows(queries, self.queries, self.device)
        if not positions:
            return
        if self.patches is not None:
            index_of = {q: i for i, q in enumerate(queries)}
            for position in positions:
                patch, self.mask_scores[position] = masks.patch(index_of[self.queries[position]])
                self.patches.append(patch)
            return
        selected = masks.complete if len(positions) == len(queries) else masks.complete[rows]
        binary = selected > 0
        area = binary.flatten(1).sum(1)
        inside = (selected.sigmoid() * binary).flatten(1).sum(1)
        # `positions` are contiguous: both lists are sorted, and chunks come in order.
        self.masks[positions[0] : positions[-1] + 1] = binary
        self.mask_scores[positions[0] : positions[-1] + 1] = inside / (area + 1e-6)

    def finish(self) -> Instances:
        index_of = {q: i for i, q in enumerate(self.queries)}
        index = torch.tensor([index_of[q] for q in self.rows.tolist()], dtype=torch.int64)
        scores, labels = self.scores, self.labels
        if self.threshold > 0:
            keep = scores * to_cpu(self.mask_scores)[index] >= self.threshold
            index, scores, labels = index[keep], scores[keep], labels[keep]
        result = Instances(self.size)
        if self.patches is not None:
            result.pred_patches = [self.patches[i] for i in index.tolist()]
            result.pred_boxes = Boxes(boxes_from_patches(result.pred_patches))
            result.scores, result.pred_classes = scores * self.mask_scores[index], labels
            return result
        index = to_device(index, self.device)
        result.pred_masks = self.masks[index]
        result.pred_boxes = Boxes(boxes_from_masks(self.masks)[index])
        result.scores = to_device(scores, self.device) * self.mask_scores[index]
        result.pred_classes = to_device(labels, self.device)
        return result


class _Panoptic:
    """Each pixel is assigned to the query with the largest class score x mask probability (MaskFormer, section 3.4)."""

    def __init__(self, class_scores: Tensor, host_scores: Tensor, s: Settings) -> None:
        self.device, self.settings = class_scores.device, s
        best, labels = host_scores.max(-1)
        keep = (labels != host_scores.shape[1] - 1) & (best > s.object_mask_threshold)
        self.queries: Sequence[int] = keep.nonzero().flatten().tolist()
        self.scores, self.labels = best[keep], labels[keep].tolist()

    def start(self, size: Size) -> None:
        self.weight = to_device(self.scores, self.device)
        self.best = torch.full(size, -1.0, device=self.device)
        self.winner = torch.zeros(size, dtype=torch.int64, device=self.device)
        self.inside = torch.zeros(size, dtype=torch.bool, device=self.device)
        self.area = torch.zeros(len(self.queries), dtype=torch.int64, device=self.device)

    def add(self, queries: Sequence[int], masks: ResizedMasks) -> None:
        positions, rows = _rows(queries, self.queries, self.device)
        if not positions:
            return
        run = slice(positions[0], positions[-1] + 1)
        probability = (masks.complete if len(positions) == len(queries) else masks.complete[rows]).sigmoid()
        self.area[run] = (probability >= 0.5).flatten(1).sum(1)
        score, winner = (probability * self.weight[run, None, None]).max(0)
        better = score > self.best
        self.best = torch.where(better, score, self.best)
        self.winner = torch.where(better, winner + positions[0], self.winner)
        self.inside = torch.where(better, probability.gather(0, winner[None])[0] >= 0.5, self.inside)

    def finish(self) -> tuple[Tensor, list[dict[str, Any]]]:
        if not self.queries:
            return torch.zeros(self.best.shape, dtype=torch.int32, device=self.device), []
        won, visible = self._areas()
        areas, won, visible = to_cpu(torch.stack((self.area, won, visible))).tolist()
        ids, segments = panoptic_segments(self.labels, self.scores.tolist(), areas, won, visible, self.settings)
        lookup = to_device(torch.tensor(ids, dtype=torch.int32), self.device)
        return lookup[self.winner] * self.inside, segments

    def _areas(self) -> tuple[Tensor, Tensor]:
        """Return, per kept query, the number of pixels assigned to it, and of those inside its mask."""
        won, visible = [], []
        chunk = max(1, _CHUNK // self.winner.numel())
        for start in range(0, len(self.queries), chunk):
            ids = torch.arange(start, min(start + chunk, len(self.queries)), device=self.device)
            hit = self.winner[None] == ids[:, None, None]
            won.append(hit.flatten(1).sum(1))
            visible.append((hit & self.inside).flatten(1).sum(1))
        return torch.cat(won), torch.cat(visible)


class _Own:
    """A result that a subclass of the model computes, of all masks."""

    def __init__(self, count: int, compute: Callable[[Tensor], Any]) -> None:
        self.queries: Sequence[int] = range(count)
        self.compute = compute

    def start(self, size: Size) -> None:
        self.masks: list[Tensor] = []

    def add(self, queries: Sequence[int], masks: ResizedMasks) -> None:
        self.masks.append(masks.complete)

    def finish(self) -> Any:
        return self.compute(torch.cat(self.masks))


_Part = _Semantic | _Instance | _Panoptic | _Own
_PARTS: dict[Task, type[_Semantic | _Instance | _Panoptic]] = {
    Task.SEMANTIC: _Semantic,
    Task.PANOPTIC: _Panoptic,
    Task.INSTANCE: _Instance,
}
