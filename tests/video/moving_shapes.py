"""A video of moving squares, and a clip model that finds them by their brightness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HEIGHT, WIDTH, SIDE = 48, 96, 16
# Brightness of each object, its first frame, the end, and the row and column (per frame) where it is.
OBJECTS = ((100, 0, 1000, 0, 2), (150, 0, 14, 16, 1), (200, 11, 1000, 32, 2))


def position(number: int, frame: int) -> tuple[int, int] | None:
    """Return the top left corner of an object (from 0) in a frame, or None if it is not visible."""
    _, first, stop, row, speed = OBJECTS[number]
    if not first <= frame < stop:
        return None
    return row, 4 * (speed * frame // 4 % ((WIDTH - SIDE) // 4))


def truth(number: int, frame: int) -> np.ndarray:
    """Return the ground-truth mask (H, W), bool, of an object."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    corner = position(number, frame)
    if corner is not None:
        mask[corner[0] : corner[0] + SIDE, corner[1] : corner[1] + SIDE] = True
    return mask


def image(frame: int) -> np.ndarray:
    """Draw a frame (H, W, 3), uint8."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, row in enumerate(OBJECTS):
        pixels[truth(number, frame)] = row[0]
    return pixels


def images(count: int) -> list[np.ndarray]:
    return [image(i) for i in range(count)]


class ShapeModel(nn.Module):
    """Finds the squares. Its queries change their order from window to window; `lengths` lists the frames of each run.

    `alike` makes all embeddings the same, so that only masks distinguish the objects. Object i has class i with score
    0.9 - 0.1 i. Stops with KeyboardInterrupt instead of window number `stop_at`.
    """

    def __init__(self, classes: int = 3, alike: bool = False, stop_at: int | None = None) -> None:
        super().__init__()
        self.classes, self.alike, self.stop_at = classes, alike, stop_at
        self.lengths: list[int] = []
        self.weight = nn.Parameter(torch.ones(2))
        self.eval()

    def preprocess(self, frames: Sequence[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        return torch.stack(list(frames)).float(), (HEIGHT, WIDTH)

    def clip_outputs(self, images: Tensor) -> dict[str, Any]:
        if self.stop_at == len(self.lengths):
            raise KeyboardInterrupt
        self.lengths.append(len(images))
        seed = torch.Generator().manual_seed(len(images) + int(images.sum()))
        order = torch.randperm(len(OBJECTS) + 1, generator=seed)
        small = images[:, 0, 2::4, 2::4]
        values = torch.tensor([row[0] for row in OBJECTS] + [-1])
        found = small[None] == values[:, None, None, None]
        logits = torch.full((len(values), self.classes + 1), -20.0)
        for i in range(len(values)):
            score = 0.9 - 0.1 * i if found[i].any() else 0.001
            logits[i, i % self.classes], logits[i, -1] = np.log(score), np.log(1 - score)
        embeds = torch.ones(len(values), 4) if self.alike else torch.eye(len(values), 4) + 0.1
        return {
            "pred_logits": logits[order],
            "pred_masks": (found.float() * 20 - 10)[order],
            "pred_embeds": embeds[order],
        }
