"""The meta-architecture: preprocessing, the network, then losses or post-processing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from .errors import ConfigError, first_few
from .modeling.criterion import SetCriterion
from .modeling.device_transfer import to_cpu
from .modeling.matcher import HungarianMatcher
from .modeling.postprocess import Settings, postprocess
from .structures.task import IMAGE_TASKS, Task, tasks_of
from .utils.registry import register


class MaskClassifier(nn.Module):
    """Base class of the image and the video model: components, preprocessing and losses.

    Args:
        backbone, sem_seg_head, criterion: the components.
        num_queries: Q.
        metadata: metadata of the training dataset.
        size_divisibility: pad images to a multiple of this; negative: the backbone's own.
        pixel_mean, pixel_std: per channel, in the value range of the images (0 to 255).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        num_queries: int,
        metadata: Any,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.metadata = metadata
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def parts_from_config(cls, cfg: Any) -> dict[str, Any]:
        """Build the arguments of this class, for the `from_config` of the models."""
        backbone = build_backbone(cfg)
        head = build_sem_seg_head(cfg, backbone.output_shape())
        if not hasattr(head, "num_classes"):
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.NAME {cfg.MODEL.SEM_SEG_HEAD.NAME} is no head of mask classification "
                f"(MaskFormerHead), which MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} needs"
            )
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "criterion": build_criterion(cfg, head.num_classes),
            "num_queries": cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if len(cfg.DATASETS.TRAIN) else None,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Return the device that the model runs on."""
        return self.pixel_mean.device

    def pad_images(self, images: Iterable[Tensor]) -> ImageList:
        """Move images (3, H, W) to the device, normalize and batch them, padded right and below with zeros.

        Returns:
            `tensor` (B, 3, H, W) and the images' sizes.
        """
        on_device = (x.to(self.device, non_blocking=True) for x in images)
        normalized = [(x - self.pixel_mean) / self.pixel_std for x in on_device]
        return ImageList.from_tensors(normalized, self.size_divisibility)

    def weighted_losses(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Compute the criterion's losses, each multiplied by its weight."""
        losses = self.criterion(outputs, targets)
        weights: Any = self.criterion.weight_dict
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}


@register(META_ARCH_REGISTRY)
class MaskFormer(MaskClassifier):
    """Mask classification for semantic, instance and panoptic segmentation (MaskFormer and Mask2Former).

    Args:
        object_mask_threshold, overlap_threshold: see `postprocess.Settings`.
        sem_seg_postprocess_before_inference: resize masks, not semantic scores, to the output size.
        semantic_on, panoptic_on, instance_on: the tasks whose results inference returns.
        test_topk_per_image: largest number of instances.
        score_threshold: instances with a lower score are dropped.
        parts: arguments of `MaskClassifier`; things are the classes in the metadata's
            `thing_dataset_id_to_contiguous_id`.
    """

    @configurable
    def __init__(
        self,
        *,
        object_mask_threshold: float,
        overlap_threshold: float,
        sem_seg_postprocess_before_inference: bool,
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        test_topk_per_image: int,
        score_threshold: float = 0.0,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        thing_ids = getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None)
        switches = {Task.SEMANTIC: semantic_on, Task.INSTANCE: instance_on, Task.PANOPTIC: panoptic_on}
        self.settings = Settings(
            tasks=frozenset(task for task, on in switches.items() if on),
            topk=test_topk_per_image,
            score_threshold=score_threshold,
            object_mask_threshold=object_mask_threshold,
            overlap_threshold=overlap_threshold,
            semantic_at_output_size=sem_seg_postprocess_before_inference,
            things=None if thing_ids is None else frozenset(thing_ids.values()),
        )

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        node, tasks = cfg.MODEL.MASK_FORMER, tasks_of(cfg)
        arguments = cls.parts_from_config(cfg) | {f"{task}_on": task in tasks for task in IMAGE_TASKS}
        return arguments | {
            "object_mask_threshold": node.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": node.TEST.OVERLAP_THRESHOLD,
            "sem_seg_postprocess_before_inference": node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
            or bool(tasks - {Task.SEMANTIC}),
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.TEST.SCORE_THRESHOLD,
        }

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]], settings: Settings | None = None) -> Any:
        """Compute losses in training, results otherwise.

        Args:
            batched_inputs: per image {"image": uint8 (3, H, W)}; optional "height", "width" (size of the results,
                default that of the image); in training "instances" with `gt_classes` (N,), `gt_masks` bool (N, H, W).
            settings: post-processing settings of this call; None: those of the model.

        Returns:
            In training a dict of weighted losses. Otherwise per image a dict with "sem_seg" (K, h, w),
            "panoptic_seg" (int32 map (h, w), segments) and "instances" (`pred_masks` bool (N, h, w), `pred_boxes`,
            `scores`, `pred_classes`), for the tasks that are switched on.
        """
        images = self.preprocess(batched_inputs)
        with naming_tiny_images(images.tensor, [x.get("file_name") for x in batched_inputs]):
            outputs = self.sem_seg_head(self.backbone(images.tensor))
        if self.training:
            return self.weighted_losses(outputs, [self._target(x, images) for x in batched_inputs])
        return self._results(outputs, batched_inputs, images, settings or self.settings)

    def preprocess(self, batched_inputs: Sequence[Mapping[str, Any]]) -> ImageList:
        """Batch the images of the records as `pad_images` does."""
        return self.pad_images(x["image"] for x in batched_inputs)

    def _target(self, record: Mapping[str, Any], images: ImageList) -> dict[str, Any]:
        if "instances" not in record:
            raise ValueError(
                f"training sample {record.get('file_name', '(no file name)')} has no 'instances'; "
                "check INPUT.DATASET_MAPPER_NAME"
            )
        instances = record["instances"]
        masks = instances.gt_masks
        masks = getattr(masks, "tensor", masks)
        return {
            "labels": instances.gt_classes.to(self.device, non_blocking=True),
            "masks": masks.to(self.device, non_blocking=True),
            "size": tuple(images.tensor.shape[-2:]),
            "name": record.get("file_name"),
        }

    def _results(
        self,
        outputs: Mapping[str, Tensor],
        batched_inputs: Sequence[Mapping[str, Any]],
        images: ImageList,
        settings: Settings,
    ) -> list[dict[str, Any]]:
        scores, masks = class_scores_and_masks(outputs)
        host_scores = to_cpu(scores) if settings.objects else scores
        results = []
        for i, (record, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            output = (int(record.get("height", size[0])), int(record.get("width", size[1])))
            padded = (images.tensor.shape[-2], images.tensor.shape[-1])
            image = (int(size[0]), int(size[1]))
            results.append(postprocess(scores[i], host_scores[i], masks[i], padded, image, output, settings))
        return results


def class_scores_and_masks(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return class scores (B, Q, K + 1), after the softmax, and mask logits (B, Q, H4, W4) of a head's outputs."""
    masks = outputs["pred_masks"]
    return F.softmax(outputs["pred_logits"].float(), dim=-1), masks[:, :, 0] if masks.dim() == 5 else masks


def build_criterion(cfg: Any, num_classes: int) -> SetCriterion:
    """Build the criterion with its matcher and the weights of all supervised predictions, from MODEL.MASK_FORMER."""
    node = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(
        cost_class=node.CLASS_WEIGHT,
        cost_mask=node.MASK_WEIGHT,
        cost_dice=node.DICE_WEIGHT,
        num_points=node.TRAIN_NUM_POINTS,
        max_nonfinite=cfg.SOLVER.MAX_NONFINITE_STEPS,
    )
    terms = {"loss_ce": node.CLASS_WEIGHT, "loss_mask": node.MASK_WEIGHT, "loss_dice": node.DICE_WEIGHT}
    earlier = range(node.DEC_LAYERS - 1 if node.DEEP_SUPERVISION else 0)
    weights = terms | {f"{name}_{i}": weight for i in earlier for name, weight in terms.items()}
    return SetCriterion(
        num_classes,
        matcher,
        weights,
        eos_coef=node.NO_OBJECT_WEIGHT,
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
        deep_supervision=node.DEEP_SUPERVISION,
    )


@contextlib.contextmanager
def naming_tiny_images(images: Tensor, names: Sequence[str | None] = ()) -> Iterator[None]:
    """Say in words that group normalization cannot work with one value in each group, which PyTorch refuses.

    Args:
        images: (B, 3, H, W) as the network gets them.
        names: files of the images, where they are known.

    Raises:
        ValueError: that is so; the message names files, size and keys.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        files = f" ({first_few([name for name in names if name])})" if any(names) else ""
        size = f"{images.shape[-1]} x {images.shape[-2]} pixels"
        raise ValueError(
            f"images{files} of {size}, as the network gets them, are too small for the group normalization of this "
            "model: use a larger INPUT.MIN_SIZE_TEST (--min-size) or INPUT.IMAGE_SIZE, or a larger "
            "MODEL.SEM_SEG_HEAD.CONVS_DIM"
        ) from error
