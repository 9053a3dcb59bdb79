"""Calls of a backbone and a head, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.signatures import accepted

# In inference, frames of a clip that go through backbone and pixel decoder together hold about this many pixels.
_TOGETHER = 2**22


def run_network(
    backbone: nn.Module, head: nn.Module, images: Tensor, keywords: Mapping[str, Any], known: bool
) -> Mapping[str, Any]:
    """Call backbone and head; known ones on CUDA get images and maps in the memory format that tensor cores want.

    Modules of other projects may rely on the usual format, as `view` does.
    """

    def maps_of(part: Tensor) -> Mapping[str, Tensor]:
        if not known:
            return backbone(part)  # type: ignore[no-any-return]
        return {name: as_kernels_want(x) for name, x in backbone(as_kernels_want(part)).items()}

    parts = parts_of_clip(head, images, keywords)
    if len(parts) == 1:
        return call_head(head, maps_of(images), keywords)
    own: Any = head
    maps = join_parts([own.pixel_maps(maps_of(part)) for part in parts])
    return own.predict(*maps, **accepted(own.predict, keywords))  # type: ignore[no-any-return]


def parts_of_clip(head: nn.Module, images: Tensor, keywords: Mapping[str, Any]) -> Sequence[Tensor]:
    """Split a clip in inference into frames that go together until the decoder, which bounds the memory."""
    if keywords.get("frames") is None or head.training or not getattr(head, "by_frame", False):
        return (images,)
    return images.split(max(1, _TOGETHER // (images.shape[-2] * images.shape[-1])))


def join_parts(maps: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """Concatenate what `pixel_maps` returns of consecutive frames: maps (t, C, H, W), or lists of maps."""
    if len(maps) == 1:
        return maps[0]
    return [_concatenated(values) for values in zip(*maps, strict=True)]


def _concatenated(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def as_kernels_want(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def call_head(
    head: Callable[..., Any], features: Mapping[str, Tensor], keywords: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Call a head with keywords, as `frames` of clips, of those that a head of another project takes."""
    return head(features, **accepted(head, keywords)) if keywords else head(features)
