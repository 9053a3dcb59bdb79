"""A model of mask classification that is exported in a second: a convolution in the place of backbone and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from mask2former.config import load_config
from mask2former.maskformer_model import MaskFormer

QUERIES, CLASSES = 6, 4


class Convolution(Backbone):
    """One map at stride 4."""

    size_divisibility = 32

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 8, stride=4, padding=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"res2": self.convolution(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=8, stride=4)}


class Head(nn.Module):
    """Masks of a convolution, classes of the mean of the map."""

    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.masks = nn.Conv2d(8, QUERIES, 1)
        self.classes = nn.Linear(8, QUERIES * (CLASSES + 1))

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = features["res2"]
        logits = self.classes(x.mean((2, 3))).unflatten(1, (QUERIES, -1))
        return {"pred_logits": logits, "pred_masks": 5 * self.masks(x)}


def small_model(task: str) -> tuple[MaskFormer, Any]:
    """Build the model for a task, with low thresholds, and a config that agrees with it."""
    torch.manual_seed(1)
    node = "MODEL.MASK_FORMER"
    cfg = load_config(
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        [
            *("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 0, "INPUT.FORMAT", "BGR"),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES, f"{node}.NUM_OBJECT_QUERIES", 100),
            *(f"{node}.TEST.INSTANCES.SCORE_THRESHOLD", 0.1),
        ],
    )
    model = MaskFormer(
        backbone=Convolution(),
        sem_seg_head=Head(),
        criterion=nn.Identity(),
        num_queries=QUERIES,
        metadata=None,
        size_divisibility=32,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        object_mask_threshold=0.0,
        overlap_threshold=0.1,
        sem_seg_postprocess_before_inference=True,
        test_topk_per_image=10,
        **{f"{name}_on": name == task for name in ("semantic", "instance", "panoptic")},
    )
    nn.init.normal_(model.sem_seg_head.classes.bias, std=2.0)
    model.things = frozenset({0, 1})
    return model.eval(), cfg
