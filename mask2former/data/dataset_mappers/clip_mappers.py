"""Which frames of a video a training clip shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ...errors import BadRecordError
from ...structures.masks import EMPTY_PATCH, Patch
from .clip_augmentation import clip_augmentations, start_clip
from .targets import InstanceTargets


def sample_frames(length: int, count: int, reach: int, shuffle: bool = False) -> list[int]:
    """Draw a reference frame, and the others from its neighbourhood.

    No frame is drawn twice as long as the neighbourhood has enough of them; in shorter ones, down to videos of one
    frame, each frame comes equally often, give or take one. Numbers come from numpy's global state.

    Args:
        length: frames of the video.
        count: frames of the clip (INPUT.SAMPLING_FRAME_NUM).
        reach: largest distance from the reference frame (INPUT.SAMPLING_FRAME_RANGE).
        shuffle: leave the frames in the order of drawing instead of the order of time.

    Returns:
        `count` frame numbers in [0, length).
    """
    reference = int(np.random.randint(length))
    window = np.arange(max(0, reference - reach), min(length, reference + reach + 1))
    others = np.random.permutation(window[window != reference])
    # The reference frame ends a round, so that it is repeated last.
    chosen = [reference, *np.resize(np.append(others, reference), count - 1).tolist()]
    if shuffle:
        return [int(frame) for frame in np.random.permutation(chosen)]
    return sorted(chosen)


Track = dict[str, Any]  # an object: "id", "category_id", "iscrowd", "segmentations" (T, None where it is not seen)


class ClipMapper(InstanceTargets):
    """Shared by the mappers of clips: frames and their objects, in one order in all frames.

    A sample has "image", T tensors uint8 (3, H, W), and in training "instances", T Instances of N objects with
    gt_classes int64 (N,), gt_masks bool (N, H, W), gt_boxes and gt_ids int64 (N,). Row n is the same object in all
    frames, and its class stands in all of them; in frames that do not show it gt_ids is -1 and its mask is empty.
    Objects that no frame shows, and crowd regions, are left out.

    Args:
        is_train: make targets.
        sampling_frame_num: frames of a training clip.
        sampling_frame_range: largest distance of a frame from the clip's reference frame.
        sampling_frame_shuffle: leave the frames in random order.
        parts: of `SegmentationMapper`.
    """

    still = False  # the frames are one picture

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        sampling_frame_num: int = 2,
        sampling_frame_range: int = 20,
        sampling_frame_shuffle: bool = False,
        **parts: Any,
    ) -> None:
        super().__init__(is_train, **{**parts, "drop_empty": False})  # rows are the same in all frames
        if sampling_frame_num < 1 or sampling_frame_range < 0:
            raise ValueError(
                f"INPUT.SAMPLING_FRAME_NUM {sampling_frame_num} must be at least 1, "
                f"and INPUT.SAMPLING_FRAME_RANGE {sampling_frame_range} at least 0"
            )
        self.sampling_frame_num = sampling_frame_num
        self.sampling_frame_range = sampling_frame_range
        self.sampling_frame_shuffle = sampling_frame_shuffle

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Keywords of the constructor from a config."""
        return {
            **super().from_config(cfg, is_train),
            "sampling_frame_num": cfg.INPUT.SAMPLING_FRAME_NUM,
            "sampling_frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE,
            "sampling_frame_shuffle": cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
        }

    @classmethod
    def train_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        """Augmentations of training, in order; see `clip_augmentations`."""
        return clip_augmentations(cfg, still=cls.still)

    def clip(self, sample: dict[str, Any], files: Sequence[str], frames: Sequence[int], tracks: list[Track]) -> None:
        """Add "image" and in training "instances" to a sample.

        Args:
            sample: with "height" and "width" of the frames, or it gets them.
            files: of the T frames.
            frames: T positions in the segmentations of the tracks.
            tracks: objects; those of inference are not looked at.

        Raises:
            BadRecordError: a frame or a segmentation cannot be used; names the frame and the annotation.
        """
        start_clip(self.augmentations.augs)
        tracks = [track for track in tracks if not track.get("iscrowd", 0)]
        images, patches, sizes = [], [], []
        for file, position in zip(files, frames, strict=True):
            shown = [row for row, track in enumerate(tracks) if _is_there(track["segmentations"][position])]
            annotations = [{**tracks[row], "segmentation": tracks[row]["segmentations"][position]} for row in shown]
            record = {"file_name": file, "annotations": annotations}
            image, frame = self.augmented(record, sample)
            images.append(image)
            if self.is_train:
                found = [EMPTY_PATCH] * len(tracks)
                for row, patch in zip(shown, self.targets(record, frame)[1], strict=True):
                    found[row] = patch
                patches.append(found)
                sizes.append(frame.new_size)
        sample["image"] = images
        if self.is_train:
            classes = [int(track["category_id"]) for track in tracks]
            sample["instances"] = self._clip_instances(classes, patches, sizes)

    def _clip_instances(
        self, classes: list[int], patches: list[list[Patch]], sizes: list[tuple[int, int]]
    ) -> list[Any]:
        """Instances per frame, from the patches of each frame (T, N), in the same order of objects."""
        seen = [row for row in range(len(classes)) if any(found[row].bits.size for found in patches)]
        result = []
        for found, size in zip(patches, sizes, strict=True):
            instances = self.instances([classes[row] for row in seen], [found[row] for row in seen], size)
            ids = [row if found[row].bits.size else -1 for row in seen]
            instances.gt_ids = torch.tensor(ids, dtype=torch.int64)
            result.append(instances)
        return result


class YTVISDatasetMapper(ClipMapper):
    """INPUT.DATASET_MAPPER_NAME "ytvis": clips of videos; at inference all frames.

    Samples have the record's entries, with "file_names" of the frames that were chosen.
    """

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one video.

        Args:
            record: as `video_records` gives them, or with annotations in the form of the reference implementation: for
                each frame a list of {"id", "category_id", "segmentation"}. Not changed.

        Raises:
            BadRecordError: no frames, or frames or annotations cannot be used.
        """
        sample = {key: value for key, value in record.items() if key != "annotations"}
        files = record.get("file_names")
        name = f"video {record.get('video_id')}"
        if not isinstance(files, (list, tuple)) or not files:
            reason = "the record has no 'file_names'; this mapper reads videos, as DATASETS.YTVIS_JSON lists them"
            raise BadRecordError(name, reason)
        frames = list(range(len(files)))
        tracks: list[Track] = []
        if self.is_train:
            if not isinstance(record.get("annotations"), list):
                reason = "the video has no annotations: files of a test server hold no truth, train on another split"
                raise BadRecordError(str(files[0]), reason, name)
            tracks = as_tracks(record["annotations"], str(files[0]), len(files))
            for track in tracks:
                self.check_class(track.get("category_id"), str(files[0]), f"annotation {track.get('id')}")
            frames = sample_frames(
                len(files), self.sampling_frame_num, self.sampling_frame_range, self.sampling_frame_shuffle
            )
        sample["file_names"] = [files[frame] for frame in frames]
        self.clip(sample, sample["file_names"], frames, tracks)
        return sample


class CocoClipDatasetMapper(ClipMapper):
    """INPUT.DATASET_MAPPER_NAME "coco_clip": each picture becomes a clip of INPUT.SAMPLING_FRAME_NUM frames.

    The frames differ by what is drawn for each of them: INPUT.AUGMENTATIONS, the place of INPUT.CROP, and the flip
    unless it is "flip_by_clip". For datasets of COCO's kind; videos are for evaluation. At inference one frame.
    """

    still = True

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one picture with instance annotations.

        Raises:
            BadRecordError: picture or annotations cannot be used.
        """
        sample = {key: value for key, value in record.items() if key != "annotations"}
        file = record.get("file_name", "")
        count = self.sampling_frame_num if self.is_train else 1
        annotations = record.get("annotations")
        if self.is_train and not isinstance(annotations, list):
            raise BadRecordError(file, "the record has no 'annotations'; this mapper trains on instance annotations")
        tracks = [_still_track(entry, file) for entry in annotations or []]
        sample.update(length=count, file_names=[file] * count, video_id=record.get("image_id"))
        self.clip(sample, sample["file_names"], [0] * count, tracks)
        return sample


class MixedClipDatasetMapper:
    """INPUT.DATASET_MAPPER_NAME "mixed_clips": trains on videos as "ytvis" and on pictures as "coco_clip" does.

    For few videos, whose objects are seen in many more pictures. The datasets of DATASETS.TRAIN name the same classes.

    Args:
        cfg: of a video model.
        is_train: make targets.
    """

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        self.videos = YTVISDatasetMapper(cfg, is_train)
        self.pictures = CocoClipDatasetMapper(cfg, is_train)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map a video, which has "file_names", or a picture.

        Raises:
            BadRecordError: frames or annotations cannot be used.
        """
        return (self.videos if "file_names" in record else self.pictures)(record)


def _still_track(entry: Any, file: str) -> Track:
    """An annotation of a picture as an object that is seen in it."""
    if not isinstance(entry, dict):
        raise BadRecordError(file, "an annotation is a dictionary")
    if not _is_there(entry.get("segmentation")) and not entry.get("iscrowd", 0):
        raise BadRecordError(file, "has no 'segmentation'", f"annotation {entry.get('id')}")
    return {**entry, "segmentations": [entry.get("segmentation")]}


def as_tracks(annotations: list[Any], file: str, length: int) -> list[Track]:
    """Objects of a video of `length` frames, from either form of annotations; see `YTVISDatasetMapper`.

    Raises:
        BadRecordError: the annotations fit neither form; `file` is named.
    """
    if annotations and all(isinstance(entry, list) for entry in annotations):
        annotations = _joined(annotations, file)
    for entry in annotations:
        if not isinstance(entry, dict) or not isinstance(entry.get("segmentations"), list):
            raise BadRecordError(file, "an annotation of a video is a dictionary with 'segmentations'")
        if len(entry["segmentations"]) != length:
            count = len(entry["segmentations"])
            reason = f"has {count} segmentations, the video has {length} frames"
            raise BadRecordError(file, reason, f"annotation {entry.get('id')}")
    return annotations


def _joined(frames: list[list[dict[str, Any]]], file: str) -> list[Track]:
    """Annotations listed by frame, as one entry for each object."""
    tracks: dict[Any, Track] = {}
    for position, entries in enumerate(frames):
        for entry in entries:
            first = {key: entry.get(key) for key in ("id", "category_id", "iscrowd")}
            track = tracks.setdefault(entry.get("id"), {**first, "segmentations": [None] * len(frames)})
            if track["category_id"] != entry.get("category_id"):
                raise BadRecordError(file, "has two classes in different frames", f"annotation {entry.get('id')}")
            track["segmentations"][position] = entry.get("segmentation")
    return list(tracks.values())


def _is_there(segmentation: Any) -> bool:
    """Whether a frame shows an object; an array or tensor may still be empty."""
    return isinstance(segmentation, (np.ndarray, torch.Tensor)) or bool(segmentation)
