"""The network of a model with its post-processing as one module of tensors, for exporters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
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
        logit_names: "class_logits", "mask_logits", and "quality_logits" of a model that predicts the quality of masks.
        output_names: those of the results, then of the logits.
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
        own = copy.deepcopy(model).cpu().eval()  # with caches of its own, which an exporter may fill
        self.backbone, self.head = own.backbone, own.sem_seg_head
        self.frames = frames
        self.part: Part = _part(own, post)
        self.thresholds = dict(self.part.thresholds)
        extra = ("valid_size",) if self.part.output_names else ()
        self.input_names = ("images", *extra, *self.thresholds)
        self.logit_names = (*LOGITS, "quality_logits") if _predicts_quality(own) else LOGITS
        self.output_names = (*self.part.output_names, *self.logit_names)
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
            The tensors that `output_names` names; logits are (B, Q, K + 1) and (B, Q, H4, W4), or (B, Q, T, H4, W4),
            and of quality (B, Q).
        """
        logits = self.logits(images)
        return (*self.results(logits, images, *others), *logits)

    def results(self, logits: Sequence[Tensor], images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Return what the post-processing makes of the result of `logits`; other arguments as for `forward`."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        quality = logits[2:] if self.part.takes_quality else ()
        return self.part(*logits[:2], size, *others, *quality)  # type: ignore[no-any-return]

    def logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits that `logit_names` names; arguments and shapes as for `forward`."""
        flat = images if self.frames is None else images.flatten(0, 1)
        features = self.backbone(flat.to(self.backbone_type))
        features = {name: x.float() for name, x in features.items()}
        call: Callable[..., Any] = self.head
        keywords = {} if self.frames is None else accepted(call, {"frames": self.frames})
        outputs = without_earlier(call(features, **keywords))
        masks = outputs["pred_masks"]
        if self.frames is None:
            masks = class_scores_and_masks(outputs)[1]
        if len(self.logit_names) == len(LOGITS):
            return outputs["pred_logits"].float(), masks.float()
        return outputs["pred_logits"].float(), masks.float(), outputs["pred_quality"].float()


def _replaced(model: MaskClassifier) -> set[Task]:
    """Return the tasks whose results a subclass of the image model computes in another way."""
    if not isinstance(model, MaskFormer):
        return set()
    return set(model.replaced_inference(torch.zeros(1, 1)))


def _predicts_quality(model: Any) -> bool:
    predictor = getattr(model.sem_seg_head, "predictor", None)
    return getattr(predictor, "quality_embed", None) is not None


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
        power = settings.quality_power if _predicts_quality(model) else 0.0
        return Instances(settings.topk, kept, settings.score_threshold, mask_scores=True, quality_power=power)
    if post == "panoptic":
        return Panoptic(things, settings.object_mask_threshold, settings.overlap_threshold)
    return Semantic()
