"""The meta-architecture for clips of T frames (arXiv 2112.10764): one query predicts an object in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor

from .maskformer_model import MaskClassifier, check_classes, naming_tiny_images
from .modeling.device_transfer import masks_to_device, to_cpu, to_device
from .modeling.ground_truth import Target
from .modeling.postprocess import Size, postprocess_clip
from .modeling.runtime import Runtime
from .structures.mask_bits import MaskBits
from .utils.lazy_dict import Later
from .utils.overrides import as_written, extensible, unchanged
from .utils.registry import register
from .utils.signatures import fitting
from .video_registration import VIDEO


@register(META_ARCH_REGISTRY, VIDEO)
@extensible
class VideoMaskFormer(MaskClassifier):
    """Video instance segmentation: each query is one object in all frames of a clip.

    Args:
        num_frames: T in training (INPUT.SAMPLING_FRAME_NUM); an attribute for other projects, clips say it themselves.
        object_mask_threshold, overlap_threshold, sem_seg_postprocess_before_inference: attributes for other projects.
        test_topk_per_video: largest number of instances (TEST.DETECTIONS_PER_VIDEO).
        score_threshold: instances with a lower score are dropped.
        parts: arguments of `MaskClassifier`.
    """

    @configurable
    def __init__(
        self,
        *,
        object_mask_threshold: float = 0.0,
        overlap_threshold: float = 0.0,
        sem_seg_postprocess_before_inference: bool = True,
        num_frames: int = 2,
        test_topk_per_video: int = 10,
        score_threshold: float = 0.0,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.object_mask_threshold, self.overlap_threshold = object_mask_threshold, overlap_threshold
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference
        self.num_frames = num_frames
        self.test_topk_per_video = test_topk_per_video
        self.score_threshold = score_threshold

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        test = cfg.MODEL.MASK_FORMER.TEST
        arguments = cls.parts_from_config(cfg) | {
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "sem_seg_postprocess_before_inference": True,
            "num_frames": cfg.INPUT.SAMPLING_FRAME_NUM,
            "test_topk_per_video": cfg.TEST.DETECTIONS_PER_VIDEO,
            "score_threshold": cfg.TEST.SCORE_THRESHOLD,
        }
        optional = {"test_topk_per_video": 10, "score_threshold": 0.0, "compile": "auto", "denoising": None}
        return fitting(cls, arguments, optional)

    @property
    def reads_mask_bits(self) -> bool:
        """Return whether training batches may have `MaskBits`: a GPU unpacks them, and only this code sees them."""
        return self.device.type == "cuda" and as_written(self, VideoMaskFormer, "forward", "prepare_targets")

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Compute losses in training, results otherwise.

        Args:
            batched_inputs: per clip {"image": T frames, uint8 (3, H, W), all of one size}; optional "height", "width"
                (size of the results, default that of the frames). In training all clips have the same T, and
                "instances" holds for each frame `gt_classes` (N,), `gt_masks` bool (N, H, W) and `gt_ids` (N,), the
                id of the object in its clip, or -1 in frames where it is not visible.

        Returns:
            In training a dict of weighted losses. Otherwise a dict for the clip of a batch of one, or else a list with
            a dict for each clip, on the CPU, with "image_size" (h, w) and,
            best first, "pred_scores" (list of float), "pred_labels" (list of int) and "pred_masks" (list of bool
            (T, h, w)). The score is the class probability alone.
        """
        if self.training:
            return self._train(batched_inputs)
        results = [self._predict(record) for record in batched_inputs]
        return results[0] if len(results) == 1 else results

    def preprocess(self, frames: Sequence[Tensor]) -> tuple[Tensor, Size]:
        """Batch T frames (3, H', W'), values 0 to 255, as `pad_images` does; return (T, 3, H, W) and (H', W')."""
        size = _common_size([frame.shape[-2:] for frame in frames], "the clip")
        return self.pad_images(frames).tensor, size

    def clip_outputs(self, images: Tensor, runtime: Runtime | None = None) -> dict[str, Tensor]:
        """Run the network on one clip in evaluation mode; T may be any number.

        Args:
            images: (T, 3, H, W), as from `preprocess`.
            runtime: runs backbone and head; None: that of the model.

        Returns:
            {"pred_logits" (Q, K + 1), "pred_masks" (Q, T, H4, W4), both before softmax and sigmoid, "pred_embeds"
            (Q, C): the decoder's query states, after its norm, which match the same object in another clip
            (where the decoder returns them)}.
        """
        assert not self.training, "clip_outputs is for inference: call model.eval() first"
        with naming_tiny_images(images):
            outputs = (runtime or self.runtime)(self.backbone, self.sem_seg_head, images, frames=len(images))
        names = {"pred_logits": "pred_logits", "pred_masks": "pred_masks", "query_embeds": "pred_embeds"}
        return {ours: outputs[theirs][0] for theirs, ours in names.items() if theirs in outputs}

    def _predict(self, record: Mapping[str, Any]) -> dict[str, Any]:
        images, size = self.preprocess(record["image"])
        outputs = self.clip_outputs(images)
        output = (int(record.get("height", size[0])), int(record.get("width", size[1])))
        padded = (images.shape[-2], images.shape[-1])
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        if unchanged(self, VideoMaskFormer, "inference_video"):
            return self._results(logits, masks, padded, size, output)
        masks = F.interpolate(masks, padded, mode="bilinear", align_corners=False)
        return self.inference_video(logits, masks, size, *output)

    def inference_video(
        self, pred_cls: Tensor, pred_masks: Tensor, img_size: Sequence[int], output_height: int, output_width: int
    ) -> dict[str, Any]:
        """Return the instances of a clip as `forward` does; overriding this method changes its result.

        Args:
            pred_cls: class logits (Q, K + 1).
            pred_masks: mask logits (Q, T, H, W) at the size of the padded frames.
            img_size: (h, w) of the frames in them.
            output_height, output_width: size of the results.
        """
        padded, size = (pred_masks.shape[-2], pred_masks.shape[-1]), (int(img_size[0]), int(img_size[1]))
        return self._results(pred_cls, pred_masks, padded, size, (int(output_height), int(output_width)))

    def _results(self, logits: Tensor, masks: Tensor, padded: Size, image: Size, output: Size) -> dict[str, Any]:
        scores = to_cpu(F.softmax(logits.float(), dim=-1))
        return postprocess_clip(scores, masks, padded, image, output, self.test_topk_per_video, self.score_threshold)

    def _train(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        counts = sorted({len(record["image"]) for record in batched_inputs})
        if len(counts) != 1:
            raise ValueError(f"the clips of a batch have {counts} frames; all must have INPUT.SAMPLING_FRAME_NUM")
        images = self.pad_images(frame for record in batched_inputs for frame in record["image"])
        with naming_tiny_images(images.tensor, [_clip_name(record) for record in batched_inputs]):
            return self.training_losses(images.tensor, partial(self._targets, batched_inputs, images), counts[0])

    def _targets(self, batched_inputs: Sequence[Mapping[str, Any]], images: ImageList) -> list[Any]:
        names = [self._check_clip(record) for record in batched_inputs]
        targets = self.prepare_targets(batched_inputs, images)
        for target, name in zip(targets, names, strict=True):
            if isinstance(target, Target):
                target.name = name
        return targets

    @staticmethod
    def _check_clip(record: Mapping[str, Any]) -> str:
        """Check the ground truth of a clip; return its name."""
        name = _clip_name(record)
        frames = record.get("instances")
        if frames is None or not all(f.has("gt_ids") for f in frames):
            raise ValueError(f"training sample {name} has no 'instances' with gt_ids; check INPUT.DATASET_MAPPER_NAME")
        if len(frames) != len(record["image"]):
            raise ValueError(
                f"{name} has {len(record['image'])} frames, but instances of {len(frames)}; "
                "check INPUT.DATASET_MAPPER_NAME"
            )
        _common_size([f.image_size for f in frames], name)
        return name

    def prepare_targets(self, targets: Sequence[Mapping[str, Any]], images: ImageList) -> list[Any]:
        """Convert ground truth to what the criterion takes; a subclass may override it.

        Args:
            targets: the records of the clips, as for `forward`.
            images: the batch of all frames.

        Returns:
            Per clip {"labels": (N,), "ids": (N, T), -1 where an object is not visible, "masks": (N, T, H, W), padded
            where they are read}, on the device.
        """
        size = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
        prepared = []
        objects = [clip_objects(record["instances"], _clip_name(record)) for record in targets]
        on_device = masks_to_device([masks for _, masks, _ in objects], self.device)
        for record, (labels, _, ids), masks in zip(targets, objects, on_device, strict=True):
            check_classes(labels, self.sem_seg_head, _clip_name(record))
            target = Target.of(to_device(labels, self.device), masks, size)
            target["ids"] = Later(partial(to_device, ids, self.device))
            prepared.append(target)
        return prepared


def clip_objects(frames: Sequence[Instances], name: str = "a clip") -> tuple[Tensor, Tensor | MaskBits, Tensor]:
    """Collect the objects that are visible in at least one frame, in the order of their ids.

    Args:
        frames: per frame `gt_classes` (N,), `gt_masks` (N, H, W), bool or bits, `gt_ids` (N,). N may differ between
            frames; rows with id -1 are objects that are not visible in this frame; their classes and masks are ignored.
        name: of the clip, for messages.

    Returns:
        labels (N,) int64, from a frame in which the object is visible, masks (N, T, H, W), empty where it is not, bool
        or, where all frames have bits, bits; and ids (N, T) int64, -1 where it is not.

    Raises:
        ValueError: an id comes twice in a frame, or masks have another size than their frame.
        TypeError: classes are no whole numbers.
    """
    ids = [f.gt_ids.tolist() for f in frames]
    for t, rows in enumerate(ids):
        twice = sorted({i for i in rows if i >= 0 and rows.count(i) > 1})
        if twice:
            raise ValueError(f"frame {t} of {name} has several objects with gt_ids {', '.join(map(str, twice))}")
    index_of = {i: n for n, i in enumerate(sorted({i for rows in ids for i in rows if i >= 0}))}
    given = [getattr(frame.gt_masks, "tensor", frame.gt_masks) for frame in frames]
    bits = [each for each in given if isinstance(each, MaskBits) and each.size == frames[0].image_size]
    packed = len(bits) == len(given)
    if packed:
        stored = [each.bits.cpu() for each in bits]
    else:
        stored = [each.unpacked() if isinstance(each, MaskBits) else each.cpu().bool() for each in given]
    shape = stored[0].shape[1:] if packed else frames[0].image_size
    masks = torch.zeros(len(index_of), len(frames), *shape, dtype=stored[0].dtype)
    labels = [0] * len(index_of)
    all_ids = np.full((len(index_of), len(frames)), -1, dtype=np.int64)
    for t, (frame, rows) in enumerate(zip(frames, ids, strict=True)):
        if not any(i >= 0 for i in rows):  # what such a frame has besides may have any shape and type
            continue
        # Row by row: an index of PyTorch copies single bytes on a CPU: 50 ms for 4 clips x 4 frames of 25 objects.
        source, target = stored[t].numpy(), masks.numpy()[:, t]
        if source.shape[1:] != target.shape[1:]:
            sizes = [" x ".join(map(str, size)) for size in (source.shape[1:], target.shape[1:])]
            raise ValueError(
                f"frame {t} of {name} has masks of {sizes[0]}, but is {sizes[1]}; check INPUT.DATASET_MAPPER_NAME"
            )
        if frame.gt_classes.is_floating_point():
            raise TypeError(f"frame {t} of {name} has classes that are no whole numbers")
        for row, (i, label) in enumerate(zip(rows, frame.gt_classes.tolist(), strict=True)):
            if i >= 0:
                n = index_of[i]
                target[n], labels[n], all_ids[n, t] = source[row], label, i
    every_mask = MaskBits(masks, bits[0].size) if packed else masks
    return torch.tensor(labels, dtype=torch.int64), every_mask, torch.from_numpy(all_ids)


def _clip_name(record: Mapping[str, Any]) -> str:
    names = record.get("file_names") or record.get("file_name") or "(no file name)"
    return f"clip {names if isinstance(names, str) else names[0]}"


def _common_size(sizes: Sequence[Sequence[int]], name: str) -> Size:
    different = sorted({(int(height), int(width)) for height, width in sizes})
    if len(different) != 1:
        listed = ", ".join(f"{height} x {width}" for height, width in different)
        raise ValueError(f"{name} needs frames of one size (height x width), but has {listed or 'no frames'}")
    return different[0]
