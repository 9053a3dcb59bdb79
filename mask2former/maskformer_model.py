"""The meta-architecture: preprocessing, the network, then losses or post-processing."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .errors import ConfigError, first_few
from .modeling.criterion import SetCriterion, selection_name
from .modeling.criterion_settings import build_criterion, denoising_settings
from .modeling.denoising import Denoising
from .modeling.device_transfer import masks_to_device, stack_to_device, to_device
from .modeling.ground_truth import GroundTruth, Target
from .modeling.mask_quality import predicted_quality
from .modeling.matched_pairs import Assignment
from .modeling.postprocess import Settings, begin, result_of_masks
from .modeling.result_graphs import ResultGraphs
from .modeling.runtime import Runtime
from .structures.mask_bits import MaskBits
from .structures.task import IMAGE_TASKS, Task, tasks_of
from .utils.overrides import as_written, extensible, unchanged
from .utils.registry import register
from .utils.signatures import fitting

logger = logging.getLogger(__name__)


class MaskClassifier(nn.Module):
    """Base class of the image and the video model: components, preprocessing and losses.

    Args:
        backbone, sem_seg_head, criterion: the components.
        num_queries: Q.
        metadata: metadata of the training dataset.
        size_divisibility: pad images to a multiple of this; negative: the backbone's own.
        pixel_mean, pixel_std: per channel, in the value range of the images (0 to 255).
        compile: how the network is run, see `Runtime`.
        denoising: settings of denoising queries in training; None: there are none.

    Attributes:
        runtime: runs backbone and head.

    Class attributes, to be set in a subclass:
        criterion_type: the criterion that is built from a config.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    criterion_type: type[SetCriterion] = SetCriterion

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
        compile: str = "auto",
        denoising: Denoising | None = None,
    ) -> None:
        super().__init__()
        self.runtime = Runtime(compile)
        self.denoising = denoising
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
            "criterion": build_criterion(cfg, head.num_classes, cls.criterion_type),
            "num_queries": cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if len(cfg.DATASETS.TRAIN) else None,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "compile": cfg.MODEL.COMPILE,
            "denoising": denoising_settings(cfg),
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
        images = list(images)
        kinds = {(x.shape, x.dtype, x.device.type, x.requires_grad) for x in images}
        if len(kinds) == 1 and images[0].device.type == "cpu" and not images[0].requires_grad and self._uploads:
            return self._of_one_size(images)
        on_device = (x.to(self.device, non_blocking=True) for x in images)
        normalized = [(x - self.pixel_mean) / self.pixel_std for x in on_device]
        return ImageList.from_tensors(normalized, self.size_divisibility)

    @property
    def _uploads(self) -> bool:
        return self.device.type == "cuda" and not (torch.jit.is_tracing() or torch.compiler.is_compiling())

    def _of_one_size(self, images: list[Tensor]) -> ImageList:
        """Do what `pad_images` does with one copy and a few launches."""
        normalized = (stack_to_device(images, self.device) - self.pixel_mean) / self.pixel_std
        height, width = (int(side) for side in images[0].shape[-2:])
        multiple = max(1, self.size_divisibility)
        padded = F.pad(normalized, (0, -width % multiple, 0, -height % multiple))
        return ImageList(padded, [(height, width)] * len(images))

    def training_losses(
        self,
        images: Tensor,
        prepare_targets: Callable[[], Sequence[Mapping[str, Any]]],
        frames: int | None = None,
        runtime: Runtime | None = None,
    ) -> dict[str, Tensor]:
        """Run the network and compute the weighted losses.

        Args:
            images: (B, 3, H, W), or (B * T, 3, H, W) of clips, as from `pad_images`.
            prepare_targets: returns the targets of the criterion. It is called after the network, which a GPU then
                works on already, or before it where there are denoising queries, which are made of the targets.
            frames: T; None for images.
            runtime: see `MaskFormer.forward`.
        """
        run = runtime or self.runtime
        if self.denoising is None:
            outputs = run(self.backbone, self.sem_seg_head, images, frames)
            return self.weighted_losses(outputs, prepare_targets())
        head: Any = self.sem_seg_head
        targets = prepare_targets()
        noised, queries = self.denoising.draw(GroundTruth.of(targets, self.device), head.num_classes, self.device)
        outputs = run(self.backbone, head, images, frames, noised)
        return self.weighted_losses(outputs, targets, queries)

    def weighted_losses(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        denoising: Sequence[Assignment] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the criterion's losses, each multiplied by its weight; those without a weight are dropped.

        Args:
            outputs: of the head.
            targets: as for the criterion.
            denoising: objects of the denoising queries, where there are some.
        """
        criterion: Any = self.criterion
        plain, weights = _is_plain(criterion), criterion.weight_dict
        losses = criterion.views(outputs, targets) if plain else criterion(outputs, targets)
        if denoising is not None:
            _check_denoising(outputs, criterion, self.sem_seg_head)
            losses = {**losses, **criterion.denoising_losses(outputs["denoising"], targets, denoising)}
        if "query_selection" in outputs:
            _check_selection(losses, criterion)
        for name in losses.keys() - weights.keys():
            _tell_dropped(re.sub(r"_\d+$", "", name), weights)
        losses = {name: loss for name, loss in losses.items() if name in weights}
        factors = [weights[name] for name in losses]
        if plain and losses and all(isinstance(factor, (int, float)) for factor in factors):
            scaled = torch._foreach_mul(list(losses.values()), factors)  # in one launch
            return dict(zip(losses, scaled, strict=True))
        return {name: loss * factor for (name, loss), factor in zip(losses.items(), factors, strict=True)}


@register(META_ARCH_REGISTRY)
@extensible
class MaskFormer(MaskClassifier):
    """Mask classification for semantic, instance and panoptic segmentation (MaskFormer and Mask2Former).

    Args:
        object_mask_threshold, overlap_threshold: see `postprocess.Settings`.
        sem_seg_postprocess_before_inference: resize masks, not semantic scores, to the output size.
        semantic_on, panoptic_on, instance_on: the tasks whose results inference returns.
        test_topk_per_image: largest number of instances.
        score_threshold: instances with a lower score are dropped.
        semantic_scores: "sem_seg" has the scores of all classes, not the best class of each pixel.
        quality_power: exponent of the predicted mask quality in the scores of instances, where there is one.
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
        semantic_scores: bool = True,
        quality_power: float = 1.0,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.object_mask_threshold, self.overlap_threshold = object_mask_threshold, overlap_threshold
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference
        self.semantic_on, self.instance_on, self.panoptic_on = semantic_on, instance_on, panoptic_on
        self.test_topk_per_image, self.score_threshold = test_topk_per_image, score_threshold
        self.semantic_scores, self.quality_power = semantic_scores, quality_power
        self.things: frozenset[int] | None = None

    @property
    def reads_mask_bits(self) -> bool:
        """Return whether training batches may have `MaskBits`: a GPU unpacks them, and only this code sees them."""
        return self.device.type == "cuda" and as_written(self, MaskFormer, "forward", "preprocess")

    @property
    def settings(self) -> Settings:
        """Return the settings of post-processing, from the attributes; `things` None: those of the metadata."""
        things = self.things
        if things is None and hasattr(self.metadata, "thing_dataset_id_to_contiguous_id"):
            things = frozenset(self.metadata.thing_dataset_id_to_contiguous_id.values())
        switches = {
            Task.SEMANTIC: self.semantic_on,
            Task.INSTANCE: self.instance_on,
            Task.PANOPTIC: self.panoptic_on,
        }
        return Settings(
            tasks=frozenset(task for task, on in switches.items() if on),
            topk=self.test_topk_per_image,
            score_threshold=self.score_threshold,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
            semantic_at_output_size=self.sem_seg_postprocess_before_inference,
            semantic_scores=self.semantic_scores,
            things=things,
            quality_power=self.quality_power,
        )

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        node, tasks = cfg.MODEL.MASK_FORMER, tasks_of(cfg)
        arguments = cls.parts_from_config(cfg) | {f"{task}_on": task in tasks for task in IMAGE_TASKS}
        arguments |= {
            "object_mask_threshold": node.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": node.TEST.OVERLAP_THRESHOLD,
            "sem_seg_postprocess_before_inference": node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
            or bool(tasks - {Task.SEMANTIC}),
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.TEST.SCORE_THRESHOLD,
            "semantic_scores": cfg.TEST.SEMANTIC_SCORES,
            "quality_power": node.MASK_QUALITY.POWER if node.MASK_QUALITY.ENABLED else 1.0,
        }
        optional = {
            "score_threshold": 0.0,
            "semantic_scores": True,
            "quality_power": 1.0,
            "compile": "auto",
            "denoising": None,
        }
        return fitting(cls, arguments, optional)

    def forward(
        self,
        batched_inputs: Sequence[Mapping[str, Any]],
        settings: Settings | None = None,
        runtime: Runtime | None = None,
    ) -> Any:
        """Compute losses in training, results otherwise.

        Args:
            batched_inputs: per image {"image": uint8 (3, H, W)}; optional "height", "width" (size of the results,
                default that of the image); in training "instances" with `gt_classes` (N,), `gt_masks` bool (N, H, W).
            settings: post-processing settings of this call; None: those of the model.
            runtime: runs backbone and head in this call; None: that of the model.

        Returns:
            In training a dict of weighted losses. Otherwise per image a dict with "sem_seg" (scores (K, h, w), or
            classes (h, w) without `semantic_scores`), "panoptic_seg" (int32 map (h, w), segments) and "instances"
            (`pred_masks` bool (N, h, w), `pred_boxes`, `scores`, `pred_classes`), for the tasks that are switched on.
        """
        images = self.preprocess(batched_inputs)
        with naming_tiny_images(images.tensor, [x.get("file_name") for x in batched_inputs]):
            if self.training:
                targets = partial(self._targets, batched_inputs, images)
                return self.training_losses(images.tensor, targets, runtime=runtime)
            outputs = (runtime or self.runtime)(self.backbone, self.sem_seg_head, images.tensor)
        graphs = (runtime or self.runtime).result_graphs
        return self._results(outputs, batched_inputs, images, settings or self.settings, graphs)

    def preprocess(self, batched_inputs: Sequence[Mapping[str, Any]]) -> ImageList:
        """Batch the images of the records as `pad_images` does."""
        return self.pad_images(x["image"] for x in batched_inputs)

    def _targets(self, batched_inputs: Sequence[Mapping[str, Any]], images: ImageList) -> Any:
        for record in batched_inputs:
            name = f"training sample {record.get('file_name', '(no file name)')}"
            if "instances" not in record:
                raise ValueError(f"{name} has no 'instances'; check INPUT.DATASET_MAPPER_NAME")
            check_classes(record["instances"].gt_classes, self.sem_seg_head, name)
        needed = None if not unchanged(self, MaskFormer, "prepare_targets") else ("gt_classes", "gt_masks")
        instances = _to_device([record["instances"] for record in batched_inputs], self.device, needed)
        targets = self.prepare_targets(instances, images)
        for target, record in zip(targets, batched_inputs, strict=True):
            if isinstance(target, Target):
                target.name = record.get("file_name")
        return targets

    def prepare_targets(self, targets: Sequence[Instances], images: ImageList) -> Sequence[Mapping[str, Any]]:
        """Convert ground truth to what the criterion takes; a subclass may override it.

        Args:
            targets: per image `gt_classes` (N,), `gt_masks` bool (N, H', W'), on the device.
            images: the batch that they belong to.

        Returns:
            Per image {"labels": (N,), "masks": (N, H, W)}, padded where they are read.
        """
        size = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
        masks = [getattr(x.gt_masks, "tensor", x.gt_masks) for x in targets]
        return [Target.of(x.gt_classes, m, size) for x, m in zip(targets, masks, strict=True)]

    def _results(
        self,
        outputs: Mapping[str, Tensor],
        batched_inputs: Sequence[Mapping[str, Any]],
        images: ImageList,
        settings: Settings,
        graphs: ResultGraphs | None = None,
    ) -> list[dict[str, Any]]:
        scores, masks = class_scores_and_masks(outputs)
        qualities = predicted_quality(outputs)
        begun: list[Callable[[], dict[str, Any]]] = []
        for i, (record, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            output = (int(record.get("height", size[0])), int(record.get("width", size[1])))
            padded = (images.tensor.shape[-2], images.tensor.shape[-1])
            image = (int(size[0]), int(size[1]))
            own = self.replaced_inference(outputs["pred_logits"][i])
            before = begun[-1] if begun else None
            quality = None if qualities is None else qualities[i]
            begun.append(
                begin(scores[i], None, masks[i], padded, image, output, settings, own, before, quality, graphs)
            )
        return [finish() for finish in begun]

    def replaced_inference(self, mask_cls: Tensor) -> dict[Task, Callable[[Tensor], Any]]:
        """Return the replaced ones of the inference methods, called with the class logits (Q, K + 1) of an image."""
        return {
            task: partial(getattr(self, f"{task}_inference"), mask_cls)
            for task in IMAGE_TASKS
            if not unchanged(self, MaskFormer, f"{task}_inference")
        }

    def semantic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
        """Return the semantic scores (K, h, w) of one image; overriding this method changes the result "sem_seg".

        Args:
            mask_cls: class logits (Q, K + 1).
            mask_pred: mask logits (Q, h, w) at the size of the result.
        """
        return result_of_masks(Task.SEMANTIC, F.softmax(mask_cls.float(), dim=-1), mask_pred, self.settings)

    def panoptic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return the panoptic map int32 (h, w) and its segments; overriding it changes the result "panoptic_seg".

        Arguments as for `semantic_inference`.
        """
        return result_of_masks(Task.PANOPTIC, F.softmax(mask_cls.float(), dim=-1), mask_pred, self.settings)

    def instance_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Instances:
        """Return the instances of one image; overriding it changes the result "instances".

        Arguments as for `semantic_inference`. Predicted mask quality is not part of the scores.
        """
        return result_of_masks(Task.INSTANCE, F.softmax(mask_cls.float(), dim=-1), mask_pred, self.settings)


def check_classes(classes: Tensor, head: nn.Module, name: str) -> None:
    """Check that the model has the classes (N,) of a sample, if they are on the CPU, where a look costs nothing.

    Raises:
        ValueError: it has not; on a GPU that would end in a message that names no file.
    """
    count = getattr(head, "num_classes", None)
    if classes.device.type != "cpu" or not len(classes) or not isinstance(count, int):
        return
    numbers = classes.tolist()
    wrong = min(numbers) if min(numbers) < 0 else max(numbers)
    if not 0 <= wrong < count:
        raise ValueError(f"{name} has class {wrong}, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {count}")


def _to_device(instances: Sequence[Instances], device: torch.device, fields: Collection[str] | None) -> list[Instances]:
    """Copy the instances of a batch, or only some of their fields, to the device without waiting for it."""
    moved = [Instances(each.image_size) for each in instances]
    masks = [each.gt_masks for each in instances if each.has("gt_masks")]
    together = len(masks) == len(instances) and all(
        isinstance(x, MaskBits) or (isinstance(x, Tensor) and x.dtype == torch.bool) for x in masks
    )
    on_device = masks_to_device(masks, device) if together else []
    for i, (each, target) in enumerate(zip(instances, moved, strict=True)):
        for name, value in each.get_fields().items():
            if fields is not None and name not in fields:
                continue
            if name == "gt_masks" and together:
                target.set(name, on_device[i])
            elif isinstance(value, MaskBits):
                target.set(name, masks_to_device([value], device)[0])
            elif isinstance(value, Boxes):
                target.set(name, Boxes(to_device(value.tensor, device)))
            elif isinstance(value, Tensor):
                target.set(name, to_device(value, device))
            else:
                target.set(name, value.to(device) if hasattr(value, "to") else value)
    return moved


def class_scores_and_masks(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return class scores (B, Q, K + 1), after the softmax, and mask logits (B, Q, H4, W4) of a head's outputs."""
    masks = outputs["pred_masks"]
    return F.softmax(outputs["pred_logits"].float(), dim=-1), masks[:, :, 0] if masks.dim() == 5 else masks


def _tell_dropped(name: str, weights: Mapping[str, Any]) -> None:
    """Tell once of a loss that has a weight for no prediction; earlier predictions alone may well have none."""
    if name not in weights and name not in _TOLD:
        _TOLD.add(name)
        logger.warning("'%s' has no weight in weight_dict of the criterion: this loss is dropped", name)


_TOLD: set[str] = set()


def _is_plain(criterion: nn.Module) -> bool:
    """Return whether calling the criterion gives what its `views` gives: no subclass or hook stands in between."""
    hooks = criterion._forward_hooks or criterion._forward_pre_hooks
    return not hooks and unchanged(criterion, SetCriterion, "forward", "views")


def _check_denoising(outputs: Mapping[str, Any], criterion: nn.Module, head: nn.Module) -> None:
    """Check that decoder and criterion, which may be of another project, know denoising queries."""
    part = None
    if "denoising" not in outputs:
        part = getattr(head, "predictor", head)
    elif not hasattr(criterion, "denoising_losses"):
        part = criterion
    if part is not None:
        raise ValueError(f"{type(part).__name__} has no denoising queries: set MODEL.MASK_FORMER.DENOISING.QUERIES 0")


def _check_selection(losses: Collection[str], criterion: nn.Module) -> None:
    """Check that the criterion, which may be of another project, supervises the selected tokens."""
    if not any(name.startswith(selection_name("")) for name in losses):
        raise ValueError(
            f"{type(criterion).__name__} has no losses of selected tokens, which then learn nothing: set "
            "MODEL.MASK_FORMER.QUERY_SELECTION False"
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
