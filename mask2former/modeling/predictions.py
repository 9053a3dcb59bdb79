"""All supervised predictions of a training step, whose mask logits are made only where they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .point_sampling import sample_maps


@dataclass
class Predictions:
    """L predictions (the last one first, then the earlier ones in order).

    Attributes:
        logits: (L, B, Q, K + 1) class logits.
        embeds: (L, B, Q, C) query embeddings, whose products with `features` are the mask logits; or None.
        features: (B, T, C, H4, W4), or None.
        masks: (L, B, Q, T, H4, W4) mask logits of decoders that make them all; or None.
    """

    logits: Tensor
    embeds: Tensor | None = None
    features: Tensor | None = None
    masks: Tensor | None = None

    @classmethod
    def of(cls, outputs: Mapping[str, Any]) -> Predictions:
        """From a decoder's outputs: with "pred_embeds" and "mask_features", or with "pred_masks"
        (B, Q, H4, W4) or (B, Q, T, H4, W4); earlier predictions in "aux_outputs"."""
        steps = [outputs, *outputs.get("aux_outputs", ())]
        logits = torch.stack([s["pred_logits"] for s in steps]).float()
        if "pred_embeds" in outputs:
            embeds = torch.stack([s["pred_embeds"] for s in steps]).float()
            return cls(logits, embeds, outputs["mask_features"].float())
        masks = torch.stack([s["pred_masks"] for s in steps]).float()
        return cls(logits, masks=masks[:, :, :, None] if masks.dim() == 5 else masks)

    def sample(self, points: Tensor) -> Iterator[Tensor]:
        """Mask logits of all queries at points (B, P, 2), in every frame: one image after another (L * Q, T * P)."""
        if self.embeds is not None and self.features is not None:
            frames = self.features.shape[1]
            per_frame = points.repeat_interleave(frames, dim=0)
            sampled = sample_maps(self.features.flatten(0, 1), per_frame).unflatten(0, (-1, frames))  # (B, T, C, P)
            for image, values in enumerate(sampled.transpose(1, 2).flatten(2)):
                yield self.embeds[:, image].flatten(0, 1) @ values
            return
        assert self.masks is not None
        frames = self.masks.shape[3]
        for image in range(self.masks.shape[1]):
            masks = self.masks[:, image].flatten(0, 2)[None]  # (1, L Q T, H, W)
            yield sample_maps(masks, points[image][None])[0].view(-1, frames * points.shape[1])

    def matched(self, image: int, layers: Tensor, queries: Tensor) -> Tensor:
        """Mask logits (M, T, H, W) of chosen queries of one image; `layers` and `queries` are (M,) int64."""
        if self.embeds is not None and self.features is not None:
            frames, channels, height, width = self.features.shape[1:]
            flat = self.features[image].transpose(0, 1).reshape(channels, -1)
            return (self.embeds[layers, image, queries] @ flat).view(-1, frames, height, width)
        assert self.masks is not None
        return self.masks[layers, image, queries]
