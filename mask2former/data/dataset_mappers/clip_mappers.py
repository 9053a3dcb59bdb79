"""Mappers of clips: they sample frames of a video and list its objects in the same order in all frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.structures import BitMasks, Instances

from ...errors import BadRecordError
from ...structures.masks import EMPTY_PATCH, Patch
from ..image_io import read_image
from ..transforms import IMAGE_PAD_VALUE
from .augmentations import resize_for_inference
from .clip_augmentation import clip_augmentations, start_clip
from .segmentation_mapper import Augmentations, as_augmentations, check_image_format, read_and_augment
from .targets import InstanceTargets, Record, check_class, make_instances

logger = logging.getLogger(__name__)


def sample_frames(length: int, count: int, reach: int, shuffle: bool = False) -> list[int]:
    """Sample a reference frame, and the other frames from its neighborhood.

    No frame is sampled twice if the neighborhood has enough frames; in smaller ones, down to videos of one frame, each
    frame is repeated equally often, up to a difference of one. Random numbers come from numpy's global state.

    Args:
        length: frames of the video.
        count: frames of the clip (INPUT.SAMPLING_FRAME_NUM).
        reach: largest distance from the reference frame (INPUT.SAMPLING_FRAME_RANGE).
        shuffle: return the frames in random order instead of temporal order.

    Returns:
        `count` frame indices in [0, length).
    """
    reference = int(np.random.randint(length))
    window = np.arange(max(0, reference - reach), min(length, reference + reach + 1))
    others = np.random.permutation(window[window != reference])
    # The reference frame is at the end of a round, so that it is repeated last.
    frames = [reference, *np.resize(np.append(others, reference), count - 1).tolist()]
    if shuffle:
        return [int(frame) for frame in np.random.permutation(frames)]
    return sorted(frames)


Track = dict[str, Any]  # an object: "id", "category_id", "iscrowd", "segmentations" (T, None where it is not visible)


class ClipMapper:
    """Base of the mappers of clips: frames and their objects, in the same order in all frames.

    A sample has "image", T tensors uint8 (3, H, W), and in training "instances", T Instances of N objects with
    gt_classes int64 (N,), gt_masks (BitMasks), gt_boxes and gt_ids int64 (N,). Row n is the same object of the same
    class in all frames; where it is not visible, gt_ids is -1 and its mask is empty. Objects that no frame shows, and
    crowd regions, are left out.

    Args:
        is_train: build targets.
        augmentations: applied to each frame, in order; a `ClipAugmentation` draws once for the clip.
        targets: turns the annotations of a frame into masks; None for `InstanceTargets(num_classes)`.
        image_format: order of the channels, "RGB" or "BGR".
        sampling_frame_num: frames of a training clip.
        sampling_frame_range: largest distance of a frame from the clip's reference frame.
        sampling_frame_shuffle: return the frames in random order.
        use_instance_mask: only True; the reference implementation has it.
        num_classes: classes outside [0, num_classes) are errors; None for no upper bound.

    Raises:
        ValueError: unknown `image_format`, a clip without frames, a negative range, or training without masks.
    """

    still = False  # whether all frames are one image

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Augmentations,
        targets: InstanceTargets | None = None,
        image_format: str = "RGB",
        sampling_frame_num: int = 2,
        sampling_frame_range: int = 20,
        sampling_frame_shuffle: bool = False,
        use_instance_mask: bool = True,
        num_classes: int | None = None,
    ) -> None:
        check_image_format(image_format)
        if is_train and not use_instance_mask:
            raise ValueError(f"{type(self).__name__}(use_instance_mask=False): the models learn from masks; use True")
        if sampling_frame_num < 1 or sampling_frame_range < 0:
            raise ValueError(
                f"INPUT.SAMPLING_FRAME_NUM must be at least 1, not {sampling_frame_num}, "
                f"and INPUT.SAMPLING_FRAME_RANGE at least 0, not {sampling_frame_range}"
            )
        self.is_train = is_train
        self.augmentations = as_augmentations(augmentations)
        self.targets = targets if targets is not None else InstanceTargets(num_classes)
        self.image_format = image_format
        self.sampling_frame_num = sampling_frame_num
        self.sampling_frame_range = sampling_frame_range
        self.sampling_frame_shuffle = sampling_frame_shuffle
        mode = "training" if is_train else "inference"
        logger.info("%s: augmentations in %s: %s", type(self).__name__, mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor for a config."""
        return {
            "is_train": is_train,
            "augmentations": clip_augmentations(cfg, still=cls.still) if is_train else resize_for_inference(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "sampling_frame_num": cfg.INPUT.SAMPLING_FRAME_NUM,
            "sampling_frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE,
            "sampling_frame_shuffle": cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
            "use_instance_mask": True,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }

    def clip(self, sample: dict[str, Any], files: Sequence[str], frames: Sequence[int], tracks: list[Track]) -> None:
        """Add "image" and in training "instances" to a sample.

        Args:
            sample: its "height" and "width" are compared with the size of the frames; if missing, they are set.
            files: image files of the T frames.
            frames: T indices into the segmentations of the tracks.
            tracks: objects; not used at inference.

        Raises:
            BadRecordError: a frame or a segmentation cannot be used; names the frame and the annotation.
        """
        start_clip(self.augmentations)
        tracks = [track for track in tracks if not track.get("iscrowd", 0)]
        images, patches, sizes = [], [], []
        pixels, last = None, None
        for file, position in zip(files, frames, strict=True):
            if pixels is None or file != last:  # frames of a still image, or of a short video, repeat
                pixels, last = read_image(file, self.image_format), file
            visible = [row for row, track in enumerate(tracks) if _is_there(track["segmentations"][position])]
            annotations = [{**tracks[row], "segmentation": tracks[row]["segmentations"][position]} for row in visible]
            record = {"file_name": file, "annotations": annotations}
            # A copy, because an augmentation may write into it.
            image = read_and_augment(record, sample, self.augmentations, self.image_format, pixels=pixels.copy())
            images.append(image.to_tensor())
            if self.is_train:
                masks = [EMPTY_PATCH] * len(tracks)
                for row, patch in zip(visible, self.targets.objects(record, image)[1], strict=True):
                    masks[row] = patch
                patches.append(masks)
                sizes.append(image.size)
        sample["image"] = _one_size(images)
        if self.is_train:
            height, width = sample["image"][0].shape[1:]
            sizes = [(height, width)] * len(sizes)
            classes = [int(track["category_id"]) for track in tracks]
            sample["instances"] = _clip_instances(classes, patches, sizes)


class YTVISDatasetMapper(ClipMapper):
    """INPUT.DATASET_MAPPER_NAME "ytvis": clips of videos; at inference all frames of the video.

    Samples have the record's entries, with "file_names" of the frames of the clip.
    """

    def __call__(self, dataset_dict: Record) -> dict[str, Any]:
        """Map one video.

        Args:
            dataset_dict: as `video_records` returns them, or with annotations in the format of the reference
                implementation: a list of {"id", "category_id", "segmentation"} for each frame. Not changed.

        Raises:
            BadRecordError: the record has no frames, or frames or annotations cannot be used.
        """
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        files = dataset_dict.get("file_names")
        name = f"video {dataset_dict.get('video_id')}"
        if not isinstance(files, (list, tuple)) or not files:
            reason = "record has no 'file_names'; this mapper reads videos, as DATASETS.YTVIS_JSON lists them"
            raise BadRecordError(name, reason)
        frames = list(range(len(files)))
        tracks: list[Track] = []
        if self.is_train:
            if not isinstance(dataset_dict.get("annotations"), list):
                reason = (
                    "training sample has no 'annotations'; annotation files of a test server have no ground truth, "
                    "train on another split"
                )
                raise BadRecordError(str(files[0]), reason, name)
            tracks = as_tracks(dataset_dict["annotations"], str(files[0]), len(files))
            for track in tracks:
                where = f"annotation {track.get('id')}"
                check_class(track.get("category_id"), self.targets.num_classes, str(files[0]), where)
            frames = sample_frames(
                len(files), self.sampling_frame_num, self.sampling_frame_range, self.sampling_frame_shuffle
            )
        sample["file_names"] = [files[frame] for frame in frames]
        self.clip(sample, sample["file_names"], frames, tracks)
        return sample


class CocoClipDatasetMapper(ClipMapper):
    """INPUT.DATASET_MAPPER_NAME "coco_clip": each image becomes a clip of INPUT.SAMPLING_FRAME_NUM frames.

    The frames differ in what is drawn for each of them: INPUT.AUGMENTATIONS, the position of INPUT.CROP, and the flip
    unless it is "flip_by_clip". For image datasets with instance annotations, such as COCO. At inference one frame.
    """

    still = True

    def __call__(self, dataset_dict: Record) -> dict[str, Any]:
        """Map one image with instance annotations.

        Args:
            dataset_dict: in detectron2's format; not changed.

        Raises:
            BadRecordError: the image or its annotations cannot be used.
        """
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        file = dataset_dict.get("file_name", "")
        count = self.sampling_frame_num if self.is_train else 1
        annotations = dataset_dict.get("annotations")
        if self.is_train and not isinstance(annotations, list):
            raise BadRecordError(file, "training sample has no 'annotations'; this mapper needs instance annotations")
        tracks = [_still_track(entry, file) for entry in annotations or []]
        sample.update(length=count, file_names=[file] * count, video_id=dataset_dict.get("image_id"))
        self.clip(sample, sample["file_names"], [0] * count, tracks)
        return sample


class MixedClipDatasetMapper:
    """INPUT.DATASET_MAPPER_NAME "mixed_clips": trains on videos as "ytvis" and on images as "coco_clip" does.

    For a few videos and many more images of the same objects. All DATASETS.TRAIN have the same classes.

    Args:
        cfg: config of a video model.
        is_train: build targets.
    """

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        self.videos = YTVISDatasetMapper(cfg, is_train)
        self.images = CocoClipDatasetMapper(cfg, is_train)

    def __call__(self, dataset_dict: Record) -> dict[str, Any]:
        """Map the record of a video, which has "file_names", or of an image.

        Raises:
            BadRecordError: frames or annotations cannot be used.
        """
        return (self.videos if "file_names" in dataset_dict else self.images)(dataset_dict)


def _one_size(frames: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pad frames, uint8 (3, H, W), right and below with gray to one size, which random crops may not have."""
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (1, 2))
    if all(frame.shape[1:] == (height, width) for frame in frames):
        return frames
    pads = [(0, width - frame.shape[2], 0, height - frame.shape[1]) for frame in frames]
    return [F.pad(frame, pad, value=IMAGE_PAD_VALUE) for frame, pad in zip(frames, pads, strict=True)]


def _clip_instances(classes: list[int], patches: list[list[Patch]], sizes: list[tuple[int, int]]) -> list[Instances]:
    """Build the Instances of each frame, with the objects in the same order.

    Args:
        classes: class indices of N objects.
        patches: T lists of N masks, empty where the object is not visible.
        sizes: height and width of the T frames.
    """
    visible = [row for row in range(len(classes)) if any(masks[row].bits.size for masks in patches)]
    result = []
    for masks, size in zip(patches, sizes, strict=True):
        instances = make_instances([classes[row] for row in visible], [masks[row] for row in visible], size)
        ids = [row if masks[row].bits.size else -1 for row in visible]
        instances.gt_ids = torch.tensor(ids, dtype=torch.int64)
        instances.gt_masks = BitMasks(instances.gt_masks)  # the form that models of clips in other projects expect
        result.append(instances)
    return result


def _still_track(entry: Any, file: str) -> Track:
    """Convert an annotation of an image to a track of a clip of this image."""
    if not isinstance(entry, dict):
        raise BadRecordError(file, "has an annotation that is not a dictionary")
    if not _is_there(entry.get("segmentation")) and not entry.get("iscrowd", 0):
        raise BadRecordError(file, "has no 'segmentation'", f"annotation {entry.get('id')}")
    return {**entry, "segmentations": [entry.get("segmentation")]}


def as_tracks(annotations: list[Any], file: str, length: int) -> list[Track]:
    """Return the tracks of a video, from either format of annotations.

    Args:
        annotations: see `YTVISDatasetMapper.__call__`.
        file: for messages.
        length: frames of the video.

    Raises:
        BadRecordError: the annotations have neither format.
    """
    if annotations and all(isinstance(entry, list) for entry in annotations):
        annotations = _joined(annotations, file)
    for entry in annotations:
        if not isinstance(entry, dict) or not isinstance(entry.get("segmentations"), list):
            raise BadRecordError(file, "has an annotation that is not a dictionary with 'segmentations'")
        if len(entry["segmentations"]) != length:
            count = len(entry["segmentations"])
            reason = f"has {count} segmentations, the video has {length} frames"
            raise BadRecordError(file, reason, f"annotation {entry.get('id')}")
    return annotations


def _joined(frames: list[list[dict[str, Any]]], file: str) -> list[Track]:
    """Convert annotations that are listed by frame to one track per object."""
    tracks: dict[Any, Track] = {}
    for position, entries in enumerate(frames):
        for entry in entries:
            common = {key: entry.get(key) for key in ("id", "category_id", "iscrowd")}
            track = tracks.setdefault(entry.get("id"), {**common, "segmentations": [None] * len(frames)})
            if track["category_id"] != entry.get("category_id"):
                raise BadRecordError(file, "has different classes in two frames", f"annotation {entry.get('id')}")
            track["segmentations"][position] = entry.get("segmentation")
    return list(tracks.values())


def _is_there(segmentation: Any) -> bool:
    """Return whether an object has a segmentation in a frame; an array or tensor may still be empty."""
    return isinstance(segmentation, (np.ndarray, torch.Tensor)) or bool(segmentation)
