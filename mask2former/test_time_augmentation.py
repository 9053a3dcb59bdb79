"""Test-time augmentation: predict an image at several sizes and horizontally flipped, and merge the results.

Semantic scores of all views are averaged, as in the reference. The order of the queries differs between views, so
instances and panoptic segments are merged by `MergedQueries`. One view is computed at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .data.image_io import read_image
from .maskformer_model import MaskFormer, class_scores_and_masks
from .modeling.device_transfer import to_cpu
from .modeling.mask_quality import predicted_quality
from .modeling.postprocess import Size, postprocess
from .structures.task import Task
from .tta_merging import MergedQueries
from .utils.overrides import extensible, unchanged

logger = logging.getLogger(__name__)

Record = dict[str, Any]
# Merged masks have at most this many pixels: with 200 queries 400 MB.
_MAX_CELLS = 2**19


class View(NamedTuple):
    """One augmentation of an image: its size, and whether it is horizontally flipped."""

    size: Size
    flipped: bool = False

    def of(self, record: Mapping[str, Any]) -> Record:
        """Return the record with its image, uint8 (3, H, W), resized and, for a flipped view, flipped horizontally."""
        image = record["image"].permute(1, 2, 0).cpu().numpy()
        resized = T.ResizeTransform(*image.shape[:2], *self.size).apply_image(image)
        resized = resized[:, ::-1] if self.flipped else resized
        return {**record, "image": torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))}

    def unflip(self, maps: Tensor) -> Tensor:
        """Flip maps (..., H, W) of a flipped view back."""
        return maps.flip(-1) if self.flipped else maps


def plan_views(size: Size, min_sizes: Sequence[int], max_size: int, mirror: bool) -> list[View]:
    """Plan the views of an image: those of detectron2's DatasetMapperTTA, in the same order.

    Args:
        size: (H, W) of the image after the test loader resized it.
        min_sizes: shortest edges, TEST.AUG.MIN_SIZES.
        max_size: limit of the longest edge, TEST.AUG.MAX_SIZE.
        mirror: add the horizontal flip of each size, TEST.AUG.FLIP.
    """
    views = []
    for shortest_edge in min_sizes:
        height, width = T.ResizeShortestEdge.get_output_shape(*size, shortest_edge, max_size)
        resized = max(1, height), max(1, width)
        views += [View(resized, flipped) for flipped in ((False, True) if mirror else (False,))]
    return views


class _WithTTA(nn.Module):
    """Base class of the wrappers, which are called as the model is.

    Args:
        cfg: TEST.AUG and INPUT.FORMAT are read.
        model: the model to wrap, perhaps inside DistributedDataParallel; it must be in evaluation mode when called.
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        super().__init__()
        if not len(cfg.TEST.AUG.MIN_SIZES):
            raise ValueError("TEST.AUG.MIN_SIZES is empty; set at least one shortest edge")
        self.cfg = cfg.clone()
        self.model: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self.min_sizes: list[int] = list(cfg.TEST.AUG.MIN_SIZES)
        self.max_size: int = cfg.TEST.AUG.MAX_SIZE
        self.mirror: bool = cfg.TEST.AUG.FLIP
        self.image_format: str = cfg.INPUT.FORMAT

    @torch.no_grad()
    def forward(self, batched_inputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predict with test-time augmentation; results are as from the model.

        Args:
            batched_inputs: per image {"image": uint8 (3, H, W)}, or {"file_name": ...}; optional "height" and
                "width" of the results, default those of the image.
        """
        if self.model.training:
            raise ValueError("test-time augmentation is for inference; call .eval() first")
        return [self._inference_one_image(self._complete(record)) for record in batched_inputs]

    def _inference_one_image(self, input: Record) -> dict[str, Any]:
        """Return the results of one image; the record `input` has "image", "height" and "width"."""
        raise NotImplementedError

    def _complete(self, record: Mapping[str, Any]) -> Record:
        complete = dict(record)
        if "image" not in complete:
            pixels = read_image(complete.get("file_name", ""), self.image_format)
            complete["image"] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        complete.setdefault("height", complete["image"].shape[-2])
        complete.setdefault("width", complete["image"].shape[-1])
        return complete

    def _views(self, record: Record) -> list[View]:
        return plan_views(_size(record), self.min_sizes, self.max_size, self.mirror)


def _size(record: Mapping[str, Any]) -> Size:
    return int(record["image"].shape[-2]), int(record["image"].shape[-1])


@extensible
class SemanticSegmentorWithTTA(_WithTTA):
    """Average "sem_seg" over views, for any model that returns it, detectron2's SemanticSegmentor included.

    Args:
        cfg, model: see `_WithTTA`.
        tta_mapper: builds the views of a record: records with "transforms". By default detectron2's DatasetMapperTTA,
            whose views are made one at a time.
        batch_size: has no effect, because views differ in size: one is computed at a time.
    """

    def __init__(
        self,
        cfg: Any,
        model: nn.Module,
        tta_mapper: Callable[[Record], list[Record]] | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__(cfg, model)
        if batch_size != 1:
            logger.warning(
                "test-time augmentation computes one view at a time: batch_size %d has no effect", batch_size
            )
        self.tta_mapper: Any = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def _inference_one_image(self, input: Record) -> dict[str, Any]:
        """Return {"sem_seg": (K, h, w)}, the average over the views; `input` has "image", "height" and "width"."""
        total = RunningMean()
        for view, augmented in self._augmented(input):
            total.add(view.unflip(self.model([augmented])[0]["sem_seg"]))
        return {"sem_seg": total.mean()}

    def _get_augmented_inputs(self, input: Record) -> tuple[list[Record], list[Any]]:
        """Return the views of a record, as records, and the TransformList of each."""
        augmented = self.tta_mapper(input)
        return augmented, [view.pop("transforms") for view in augmented]

    def _augmented(self, record: Record) -> Iterator[tuple[View, Record]]:
        mapper = self.tta_mapper
        if type(mapper) is DatasetMapperTTA and unchanged(self, SemanticSegmentorWithTTA, "_get_augmented_inputs"):
            for view in plan_views(_size(record), mapper.min_sizes, mapper.max_size, mapper.flip):
                yield view, view.of(record)
            return
        for augmented, transforms in zip(*self._get_augmented_inputs(record), strict=True):
            flipped = sum(isinstance(t, T.HFlipTransform) for t in transforms.transforms) % 2 == 1
            yield View(_size(augmented), flipped), augmented


class MaskFormerWithTTA(_WithTTA):
    """Test-time augmentation of every result of a MaskFormer.

    "sem_seg" is that of `SemanticSegmentorWithTTA`. Instances and panoptic segments come from `MergedQueries`, whose
    first view is the unflipped one nearest in size to the image as the test loader resized it; the merged queries
    then go through the usual post-processing. Masks are merged at the resolution of the mask logits of the largest
    view. With a single view the results are those of the model on this view, exactly.
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        super().__init__(cfg, model)
        if not isinstance(self.model, MaskFormer):
            raise ValueError(
                f"TEST.AUG: no test-time augmentation for a {type(self.model).__name__}; set TEST.AUG.ENABLED False"
            )

    def _inference_one_image(self, input: Record) -> dict[str, Any]:
        """Return those of "sem_seg", "panoptic_seg" and "instances" that are switched on, as from the model."""
        views = self._views(input)
        if len(views) == 1:
            return self.model([views[0].of(input)])[0]
        settings, output = self.model.settings, (int(input["height"]), int(input["width"]))
        at_output = settings.at_output_size
        semantic = replace(
            settings, tasks=frozenset({Task.SEMANTIC}), semantic_at_output_size=at_output, semantic_scores=True
        )
        mean, merged = RunningMean(), None
        for view in _nearest_first(views, input["image"].shape[-2:]):
            images = self.model.preprocess([view.of(input)])
            outputs = self.model.runtime(self.model.backbone, self.model.sem_seg_head, images.tensor)
            scores, masks = class_scores_and_masks(outputs)
            padded = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
            if Task.SEMANTIC in settings.tasks:
                own = self.model.replaced_inference(outputs["pred_logits"][0])
                result = postprocess(scores[0], scores[0], masks[0], padded, view.size, output, semantic, own)
                mean.add(view.unflip(result.pop("sem_seg")))
            if settings.objects:
                if merged is None:
                    merged = MergedQueries(_common_size(views, padded, masks.shape[-2:]))
                share, quality = (view.size[0] / padded[0], view.size[1] / padded[1]), predicted_quality(outputs)
                merged.add(scores[0], masks[0], share, view.flipped, None if quality is None else quality[0])
            del images, outputs, masks
        results: dict[str, Any] = {"sem_seg": mean.mean()} if Task.SEMANTIC in settings.tasks else {}
        if merged is not None:
            quality, (scores, logits) = merged.quality(), merged.finish()
            size, objects = merged.size, replace(settings, tasks=settings.tasks - {Task.SEMANTIC})
            own = self.model.replaced_inference(scores.log())  # logits of which these are the softmax
            results |= postprocess(scores, to_cpu(scores), logits, size, size, output, objects, own, quality)
        return results


def with_tta(cfg: Any, model: nn.Module) -> nn.Module:
    """Wrap the model in the test-time augmentation of TEST.AUG.

    Raises:
        ValueError: test-time augmentation does not support this model.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture == "VideoMaskFormer":
        raise ValueError("TEST.AUG: no test-time augmentation for videos; set TEST.AUG.ENABLED False")
    if architecture == "SemanticSegmentor":
        return SemanticSegmentorWithTTA(cfg, inner)
    if isinstance(inner, MaskFormer) and not unchanged(inner, MaskFormer, "forward"):
        if inner.settings.objects:
            logger.warning(
                "TEST.AUG: %s has its own forward, so only the semantic results of its views are merged",
                type(inner).__name__,
            )
        return SemanticSegmentorWithTTA(cfg, inner)
    return MaskFormerWithTTA(cfg, inner)


class RunningMean:
    """Mean of tensors of one shape, holding one of them at a time."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Add a tensor of the common shape."""
        self._count += 1
        if self._total is None:
            self._total = value.clone()
        else:
            self._total += value

    def mean(self) -> Tensor:
        """Return the mean of the tensors added so far, at least one."""
        assert self._total is not None
        return self._total / self._count


def _nearest_first(views: Sequence[View], size: Sequence[int]) -> list[View]:
    """Return the views, the one nearest in size to the image first; of a tie the unflipped one (`plan_views`)."""
    first = min(views, key=lambda view: abs(view.size[0] - size[0]) + abs(view.size[1] - size[1]))
    return [first, *(view for view in views if view is not first)]


def _common_size(views: Sequence[View], padded: Size, masks: Sequence[int]) -> Size:
    """Return the resolution of the merged masks: that of the largest view's mask logits, without padding."""
    height, width = max((view.size for view in views), key=lambda size: size[0] * size[1])
    rows, columns = height * masks[0] / padded[0], width * masks[1] / padded[1]
    shrink = min(1.0, (_MAX_CELLS / (rows * columns)) ** 0.5)
    return max(1, round(rows * shrink)), max(1, round(columns * shrink))
