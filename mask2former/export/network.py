"""The network of a model with its post-processing as one module of tensors, for exporters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..maskformer_model import MaskClassifier, MaskFormer, class_scores_and_masks
from ..modeling.outputs import without_earlier
from ..structures.task import Task
from ..utils.signatures import accepted
from .results import Instances, Logits, Panoptic, Part, Semantic

POSTS = ("instance", "panoptic", "semantic", "none")
LOGITS = ("class_logits", "mask_logits")


class ExportNetwork(nn.Module):
    """From normalized images to results; every input and output is a tensor of fixed shape.

    Args:
        model: an image or video model of mask classification; its weights are copied.
        post: one of `POSTS`: what follows the logits.
        frames: T of a video model, None for an image model.

    Attributes:
        input_names: "images", "valid_size" (with post-processing), then the names of thresholds.
        output_names: those of the results, then "class_logits" and "mask_logits".
        thresholds: the model's own values of the thresholds, by name.

    Raises:
        ValueError: the model is no mask classifier, or the post-processing does not fit it; the message names a remedy.
    """

    def __init__(self, model: nn.Module, post: str, frames: int | None = None) -> None:
        super().__init__()
        if not isinstance(model, MaskClassifier):
            raise ValueError(
                f"{type(model).__name__} is no model of mask classification, only those (MaskFormer, VideoMaskFormer) "
                "are exported"
            )
        clip = hasattr(model, "clip_outputs")
        if clip != (frames is not None):
            raise ValueError("a video model needs a number of frames" if clip else "an image model has no frames")
        if post not in POSTS:
            raise ValueError(f"post must be one of {', '.join(POSTS)}, not {post!r}")
        if clip and post not in ("instance", "none"):
            raise ValueError(f"a video model has instances only: post must be instance or none, not {post!r}")
        if not clip and post != "none" and Task(post) in _replaced(model):
            raise ValueError(
                f"{type(model).__name__} overrides {post}_inference, which is not exported; use post 'none'"
            )
        if post == "instance" and _scores_by_quality(model):
            raise ValueError(
                "instances whose scores depend on predicted mask quality are not exported: set "
                "MODEL.MASK_FORMER.MASK_QUALITY.POWER 0 for scores without it, or use post 'none', 'panoptic' or "
                "'semantic'"
            )
        own = copy.deepcopy(model).cpu().eval()  # with caches of its own, which an exporter may fill
        self.backbone, self.head = own.backbone, own.sem_seg_head
        self.frames = frames
        self.part: Part = _part(own, post)
        self.thresholds = dict(self.part.thresholds)
        extra = ("valid_size",) if self.part.output_names else ()
        self.input_names = ("images", *extra, *self.thresholds)
        self.output_names = (*self.part.output_names, *LOGITS)
        self.backbone_type = torch.float32
        self.requires_grad_(False).eval()

    def with_half_backbone(self) -> ExportNetwork:
        """Return a copy whose backbone computes in fp16.

        The rest stays in fp32: the residual stream of the pixel decoder can overflow fp16, and mask logits decide where
        queries attend.
        """
        copied = copy.deepcopy(self)
        copied.backbone.half()
        copied.backbone_type = torch.float16
        return copied

    def forward(self, images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Return results and logits.

        Args:
            images: float (B, 3, H, W), or (B, T, 3, H, W) of a video model; normalized, padded with zeros.
            others: with post-processing: `valid_size` int64 (B, 2), height and width of the image inside H, W; then
                one scalar for each threshold.

        Returns:
            The tensors that `output_names` names; logits are (B, Q, K + 1) and (B, Q, H4, W4), or (B, Q, T, H4, W4).
        """
        size = (int(images.shape[-2]), int(images.shape[-1]))
        logits = self.logits(images)
        return (*self.part(*logits, size, *others), *logits)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class and mask logits; arguments and shapes as for `forward`."""
        flat = images if self.frames is None else images.flatten(0, 1)
        features = self.backbone(flat.to(self.backbone_type))
        features = {name: x.float() for name, x in features.items()}
        call: Callable[..., Any] = self.head
        keywords = {} if self.frames is None else accepted(call, {"frames": self.frames})
        outputs = without_earlier(call(features, **keywords))
        masks = outputs["pred_masks"]
        if self.frames is None:
            masks = class_scores_and_masks(outputs)[1]
        return outputs["pred_logits"].float(), masks.float()


def _replaced(model: MaskClassifier) -> set[Task]:
    """Return the tasks whose results a subclass of the image model computes in another way."""
    if not isinstance(model, MaskFormer):
        return set()
    return set(model.replaced_inference(torch.zeros(1, 1)))


def _scores_by_quality(model: Any) -> bool:
    """Return whether the scores of the instances of an image model depend on predicted mask quality."""
    predictor = getattr(model.sem_seg_head, "predictor", None)
    return getattr(predictor, "quality_embed", None) is not None and bool(getattr(model, "quality_power", 0))


def _part(model: Any, post: str) -> Part:
    if post == "none":
        return Logits()
    classes = int(model.sem_seg_head.num_classes)
    if hasattr(model, "clip_outputs"):
        return Instances(
            model.test_topk_per_video, torch.ones(classes, dtype=torch.bool), model.score_threshold, mask_scores=False
        )
    settings = model.settings
    things = torch.tensor([settings.is_thing(label) for label in range(classes)])
    if post == "instance":
        # With panoptic results, stuff classes are dropped after the top-k, as in the reference.
        kept = things if Task.PANOPTIC in settings.tasks else torch.ones_like(things)
        return Instances(settings.topk, kept, settings.score_threshold, mask_scores=True)
    if post == "panoptic":
        return Panoptic(things, settings.object_mask_threshold, settings.overlap_threshold)
    return Semantic()
