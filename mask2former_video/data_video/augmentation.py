"""Augmentations that are drawn once for a number of frames, counted by themselves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from .._sibling import core

_augmentation = core("data.dataset_mappers.clip_augmentation")
_ClipAugmentation: Any = _augmentation.ClipAugmentation
_SAMPLE_STYLES = ("range", "choice", "range_by_clip", "choice_by_clip")


class CountedAugmentation(_ClipAugmentation):
    """Draws anew after each `clip_frame_cnt` frames, for mappers that do not say where a clip starts.

    Args:
        augmentation: what is drawn.
        clip_frame_cnt: frames of a clip; 1 draws for each frame.
    """

    def __init__(self, augmentation: Any, clip_frame_cnt: int = 1) -> None:
        by_clip = isinstance(augmentation, _ClipAugmentation)
        super().__init__(augmentation if by_clip else _ClipAugmentation(augmentation))
        self.clip_frame_cnt = clip_frame_cnt
        self._frames = 0

    def start_clip(self) -> None:
        """Begin a clip with the next frame."""
        self._frames = 0

    def get_transform(self, image: np.ndarray) -> Any:
        """Return the transform for one frame."""
        if self._frames % self.clip_frame_cnt == 0:
            self.augmentation.start_clip()
        self._frames += 1
        return self.augmentation.get_transform(image)


class ResizeShortestEdge(CountedAugmentation):
    """Resize to a shortest edge that is drawn for each clip.

    Args:
        short_edge_length, max_size, interp: as detectron2's.
        sample_style: "range" or "choice", with or without "_by_clip".
        clip_frame_cnt: frames of a clip.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.Resampling.BILINEAR,
        clip_frame_cnt: int = 1,
    ) -> None:
        if sample_style not in _SAMPLE_STYLES:
            raise ValueError(f"sample_style is {sample_style!r}, use one of {', '.join(_SAMPLE_STYLES)}")
        style = sample_style.removesuffix("_by_clip")
        resize = core("data.transforms").ResizeShortestEdge(short_edge_length, max_size, style, interp)
        super().__init__(resize, clip_frame_cnt)


class RandomFlip(CountedAugmentation):
    """Flip that is drawn for each clip.

    Args:
        prob, horizontal, vertical: as detectron2's.
        clip_frame_cnt: frames of a clip.
    """

    def __init__(
        self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False, clip_frame_cnt: int = 1
    ) -> None:
        super().__init__(T.RandomFlip(prob, horizontal=horizontal, vertical=vertical), clip_frame_cnt)


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build the augmentations of clips that INPUT configures; those of a clip are drawn once for its frames."""
    if not is_train:
        return list(core("data.dataset_mappers.augmentations").resize_for_inference(cfg))
    return _counted(cfg, _augmentation.clip_augmentations(cfg))


def build_pseudo_augs(cfg: CfgNode, is_train: bool = True) -> list[T.Augmentation]:
    """Build the augmentations that make a clip of one image, see `CocoClipDatasetMapper`."""
    if not is_train:
        return build_augmentation(cfg, False)
    return _counted(cfg, _augmentation.clip_augmentations(cfg, still=True))


def _counted(cfg: CfgNode, augmentations: Sequence[Any]) -> list[T.Augmentation]:
    count = cfg.INPUT.SAMPLING_FRAME_NUM
    return [CountedAugmentation(a, count) if isinstance(a, _ClipAugmentation) else a for a in augmentations]
