"""Ground truth of a batch: the form that criteria of other projects read, and the one that losses compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..utils.lazy_dict import Later, LazyDict
from .device_transfer import to_device
from .outputs import unread
from .point_sampling import MaskBank


class Target(LazyDict):
    """Ground truth of an image or clip: "labels" (N,) int64, "masks" bool (N, H, W) or (N, T, H, W), padded on read.

    Attributes:
        size: (H, W) of the padded batch.
        name: file, for messages, or None.
    """

    size: tuple[int, int]
    name: str | None

    @classmethod
    def of(cls, labels: Tensor, masks: Tensor, size: tuple[int, int], name: str | None = None) -> Target:
        """Build from masks (..., H', W') that lie in the upper left corner of an image of `size`."""
        target = cls(labels=labels, masks=masks if masks.shape[-2:] == size else PaddedMasks(masks, size))
        target.size, target.name = size, name
        return target


class PaddedMasks(Later[Tensor]):
    """Masks (..., H', W') that are padded right and below with False to `size` when they are read."""

    def __init__(self, masks: Tensor, size: tuple[int, int]) -> None:
        self.masks = masks

        def compute() -> Tensor:
            padded = masks.new_zeros(*masks.shape[:-2], *size)
            padded[..., : masks.shape[-2], : masks.shape[-1]] = masks
            return padded

        super().__init__(compute)


@dataclass
class GroundTruth:
    """The objects of B images, or clips of T frames.

    Attributes:
        labels: (N,) int64 per image.
        frames: T.
        bank: the masks of all objects, frame by frame: N * T masks per image.
        size: (H, W) of the padded images.
        names: files of the images, for messages, where they are known.
    """

    labels: list[Tensor]
    frames: int
    bank: MaskBank
    size: tuple[int, int]
    names: list[str | None]

    @classmethod
    def of(cls, targets: Sequence[Mapping[str, Any]], device: torch.device) -> GroundTruth:
        """Build from targets as `SetCriterion` gets them, whose masks are not padded for it."""
        masks = [_as_they_are(target) for target in targets]
        frames = {m.shape[1] for m in masks if m.dim() == 4} or {1}
        if len(frames) != 1:
            raise ValueError(f"the clips of a batch have {sorted(frames)} frames; they must have the same number")
        largest = max(m.shape[-2] for m in masks), max(m.shape[-1] for m in masks)
        sizes = [size for size in map(_size, targets) if size and size[0] >= largest[0] and size[1] >= largest[1]]
        groups = [m.flatten(0, 1) if m.dim() == 4 else m for m in masks]
        return cls(
            labels=[target["labels"] for target in targets],
            frames=frames.pop(),
            bank=MaskBank.of(groups, device),
            size=sizes[0] if sizes else largest,
            names=[_name(target) for target in targets],
        )

    @property
    def counts(self) -> list[int]:
        """Return the number of objects of each image."""
        return [len(labels) for labels in self.labels]

    @cached_property
    def boxes(self) -> Tensor:
        """Return the (N * T, 4) bounding boxes of all masks, each left, top, right and bottom in [0, 1] of the padded
        image; zeros where a mask is empty.
        """
        left, top, right, bottom = self.bank.boxes().unbind(1)
        height, width = self.size
        return torch.stack((left / width, top / height, right / width, bottom / height), 1)

    def all_labels(self, device: torch.device) -> Tensor:
        """Return the (sum of N,) labels of all images on `device`."""
        labels = torch.cat(self.labels)
        return labels if labels.device == device else to_device(labels, device)

    def check_frames(self, frames: int) -> None:
        """Check that predictions have the frames of the ground truth.

        Raises:
            ValueError: they have another number.
        """
        if frames != self.frames and any(len(labels) for labels in self.labels):
            raise ValueError(
                f"the masks of the ground truth have {self.frames} frames, those of the predictions {frames}"
            )


def _as_they_are(target: Mapping[str, Any]) -> Tensor:
    if "masks" not in target:
        raise ValueError(
            f"a target{_of(target)} has no 'masks', only {', '.join(map(repr, target))}; see prepare_targets"
        )
    padded = unread(target, "masks")
    return padded.masks if isinstance(padded, PaddedMasks) else target["masks"]


# The targets of other projects may have keys of these names with another meaning: DETR's "size" is that of an image.


def _size(target: Mapping[str, Any]) -> tuple[int, int] | None:
    size = getattr(target, "size", target.get("size"))
    return size if isinstance(size, tuple) else None


def _of(target: Mapping[str, Any]) -> str:
    name = _name(target)
    return f" of {name}" if name else ""


def _name(target: Mapping[str, Any]) -> str | None:
    name = getattr(target, "name", target.get("name"))
    return name if isinstance(name, str) else None
