"""A model that answers from a table, for tests of everything around a model."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn


class StubModel(nn.Module):
    """Finds the left half (score 0.9, class 0) and the top row (score 0.4, class 1), which overlap.

    Keeps its inputs in `seen`. `parts` chooses which of instances, panoptic_seg and sem_seg it returns.
    """

    def __init__(self, parts: tuple[str, ...] = ("instances",)) -> None:
        super().__init__()
        self.parts = parts
        self.seen: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not self.training and not torch.is_grad_enabled()
        self.seen += inputs
        self.batches.append(len(inputs))
        return [self.answer(x["height"], x["width"]) for x in inputs]

    def answer(self, height: int, width: int) -> dict[str, Any]:
        masks = torch.zeros(3, height, width, dtype=torch.bool)
        masks[0, 0, :] = True
        masks[1, :, : width // 2] = True
        instances = Instances((height, width))
        instances.pred_masks = masks
        instances.scores = torch.tensor([0.4, 0.9, 0.0])  # not sorted; the last object is empty
        instances.pred_classes = torch.tensor([1, 0, 1])
        ids = masks[1].to(torch.int32) * 7
        info = [
            {"id": 7, "isthing": True, "category_id": 0, "score": 0.8},
            {"id": 9, "isthing": False, "category_id": 1, "score": 0.3},
        ]
        ids[-1, -1] = 9
        sem_seg = torch.stack([masks[1].float(), 1 - masks[1].float()])
        everything = {"instances": instances, "panoptic_seg": (ids, info), "sem_seg": sem_seg}
        return {part: everything[part] for part in self.parts}


ALL_PARTS = ("instances", "panoptic_seg", "sem_seg")


def gray_tensor(height: int, width: int) -> Tensor:
    """Return a uint8 (3, H, W) image whose pixels all differ in their three channels."""
    plane = torch.arange(height * width).reshape(height, width) % 251
    return torch.stack([plane, plane // 2, plane // 3]).to(torch.uint8)
